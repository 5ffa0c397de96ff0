"""How far agents are relied on, over the dictionaries of the simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coordinator.core import quarantine
from coordinator.core.attempt import Attempt
from coordinator.dispatch.port import EndedReport, Report, Wake
from tests.harness.memory_rows import Rows


def rely(rows: Rows, moved: Sequence[tuple[Attempt, Attempt]], told: Mapping[int, Report], most: int) -> Wake:
    """Counts how attempts ended, as the core does."""
    changed = False
    for _, after in moved:
        each = told[after.id]
        if isinstance(each, EndedReport) and after.state is each.outcome:
            row = rows.agent(rows.attempts[after.id].agent_id)
            known = quarantine.Reliance(row.hello.name, row.errored, row.quarantine)
            last = quarantine.Told(each.outcome, each.cause, each.sentence)
            now = quarantine.after(known, [last], most)
            changed |= now.quarantine != known.quarantine
            row.errored, row.quarantine = now.errored, now.quarantine
    return Wake(agents=changed)
