"""Defects that are put in on purpose: the simulation has to find each of them, or it proves nothing.

Each takes one rule out of the code, or of the tests' own store where the rule is a WHERE of the real one, and puts it
back afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from agent.session import Session as AgentSession
from coordinator.core import attempt as machine
from coordinator.core import job as jobs
from coordinator.core import plan
from coordinator.core.attempt import Attempt, AttemptEvent, Gone
from coordinator.core.job import Job
from coordinator.dispatch import dispatcher
from coordinator.dispatch.port import Beat, GivenUp, Hello, Observed, Opened, Pulse
from coordinator.dispatch.reaper import Watch
from coordinator.dispatch.session import Session
from tests.chaos.simulation import supervisor
from tests.chaos.simulation.jobs import SimulatedJobs
from tests.chaos.simulation.log_defects import LOG_DEFECTS
from tests.chaos.simulation.swaps import Swaps
from tests.harness.memory_runs import MemoryRuns
from tests.harness.memory_store import MemoryDispatch


def any_token_is_believed(put: Swaps) -> None:
    """A report needs no token."""

    def credulous(attempt: Attempt, event: AttemptEvent) -> Attempt:
        return step(attempt, event if isinstance(event, Gone) else dataclasses.replace(event, token=attempt.token))

    step = put.swap(machine, "step", credulous)


def what_was_never_acknowledged_is_renewed(put: Swaps) -> None:
    """A heartbeat keeps also what it does not name."""

    async def beat(self: MemoryDispatch, beats: Sequence[Beat]) -> Pulse:
        return dataclasses.replace(await heartbeat(self, beats), missing=())

    heartbeat = put.swap(MemoryDispatch, "heartbeat", beat)


def a_deployment_asks_for_no_permit(put: Swaps) -> None:
    """Whoever has the assignment begins."""

    async def granted(self: SimulatedJobs, *_: Any) -> bool:
        return True

    put.swap(SimulatedJobs, "_permit", granted)


def a_permit_ends_with_its_session(put: Swaps) -> None:
    """A permitted deployment is expired like any other attempt."""

    async def forgetful(self: MemoryDispatch, counters: Mapping[str, int], term: str) -> Sequence[str]:
        for lease in self.rows.leases.values():
            if lease.session_id in counters:
                lease.permit = None
        return await expire(self, counters, term)

    expire = put.swap(MemoryDispatch, "expire", forgetful)


def a_lost_deployment_is_tried_again(put: Swaps) -> None:
    """What may have happened is done again."""

    def eager(job: Job, *args: Any, **named: Any) -> Job:
        after = after_machinery(dataclasses.replace(job, at_most_once=False), *args, **named)
        return dataclasses.replace(after, at_most_once=job.at_most_once)

    after_machinery = put.swap(jobs, "_after_machinery", eager)


def nobody_fences_the_older_session(put: Swaps) -> None:
    """A new Hello leaves the old session as it is."""

    async def unfenced(self: MemoryDispatch, hello: Hello, session_id: str, replica: str) -> Opened:
        before = dict(self.rows.sessions)
        opened = await open_session(self, hello, session_id, replica)
        for key, row in before.items():
            self.rows.sessions.setdefault(key, row)
        return opened

    open_session = put.swap(MemoryDispatch, "open_session", unfenced)


def the_reaper_trusts_old_sights(put: Swaps) -> None:
    """What was seen before an outage or a takeover counts."""
    put.swap(Watch, "forget", lambda self: None)
    put.swap(Watch, "forget_these", lambda self, **_: None)


def out_of_contact_is_for_ever(put: Swaps) -> None:
    """Nobody settles deployments whose agent does not come back."""

    def blind(self: Watch, observed: Observed, now: float) -> tuple[dict[str, int], list[int]]:
        return see(self, observed, now)[0], []

    see = put.swap(Watch, "see", blind)


def the_supervisor_has_no_deadline(put: Swaps) -> None:
    """A sandbox goes on, whoever may start its job again."""
    put.swap(supervisor, "overdue", lambda terms, now: None)


def an_unknown_claim_is_ignored(put: Swaps) -> None:
    """A claim whose answer was lost may have been committed: its session goes on as if it had not."""

    def end(self: Session, sentence: str) -> None:
        if "does not know what it has assigned" not in sentence:
            ended(self, sentence)

    ended = put.swap(Session, "end", end)


def what_has_started_is_taken_back(put: Swaps) -> None:
    """An assignment that is overdue is given up, also when it was only its acknowledgement that was late."""

    async def hard(self: MemoryDispatch, returned: Sequence[GivenUp]) -> frozenset[int]:
        self.rows.gone({each.attempt_id: each.sentence for each in returned if each.attempt_id in self.rows.leases})
        return await give_up(self, returned)

    give_up = put.swap(MemoryDispatch, "give_up", hard)


def a_run_is_made_twice(put: Swaps) -> None:
    """A CreateRun whose answer was lost makes another run when it is asked again."""

    async def never(self: MemoryRuns, request_id: str) -> int | None:
        self.rows.requests.pop(request_id, None)

    put.swap(MemoryRuns, "run_of_request", never)


def a_report_is_forgotten_once_sent(put: Swaps) -> None:
    """An agent does not wait for the answer to its reports."""

    def forgetful(self: AgentSession, waiting: dict[Any, Any]) -> Iterable[Any]:
        for message in list(unsaid(self, waiting)):
            waiting.pop(getattr(message, "id", None), None)
            yield message

    unsaid = put.swap(AgentSession, "_unsaid", forgetful)


def a_stage_waits_for_one_job(put: Swaps) -> None:
    """A gate opens when the first job of its stage has ended."""

    def ajar(jobs: Sequence[Job], graph: plan.Graph) -> Any:
        return tuple(dataclasses.replace(gate, unfinished=min(1, gate.unfinished)) for gate in gates_of(jobs, graph))

    gates_of = put.swap(plan, "gates_of", ajar)


def nobody_polls(put: Swaps) -> None:
    """A wake that was lost is waited for, for ever."""

    async def either(first: Any, second: Any, seconds: float) -> None:
        await waits(first, second, 1e9)

    waits = put.swap(dispatcher, "_either", either)


DEFECTS: Mapping[str, Callable[[Swaps], None]] = MappingProxyType(
    {
        each.__name__: each
        for each in (
            any_token_is_believed,
            what_was_never_acknowledged_is_renewed,
            a_deployment_asks_for_no_permit,
            a_permit_ends_with_its_session,
            a_lost_deployment_is_tried_again,
            nobody_fences_the_older_session,
            the_reaper_trusts_old_sights,
            out_of_contact_is_for_ever,
            the_supervisor_has_no_deadline,
            an_unknown_claim_is_ignored,
            what_has_started_is_taken_back,
            a_run_is_made_twice,
            a_report_is_forgotten_once_sent,
            a_stage_waits_for_one_job,
            nobody_polls,
            *LOG_DEFECTS,
        )
    }
)


@contextlib.contextmanager
def defect(name: str) -> Iterator[None]:
    """The code with one defect in it."""
    put = Swaps()
    try:
        DEFECTS[name](put)
        yield
    finally:
        put.undo()
