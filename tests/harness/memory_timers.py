"""What time and groups do in the simulation: pauses end, approvals expire, whoever waits for a place gets it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from coordinator.core.concurrency import Member, admit
from coordinator.core.events import Canceled, DelayOver, Entered, JobEvent
from coordinator.core.plan import ended_by_cancel, enter
from coordinator.core.stages import DoorState
from coordinator.core.states import RUN_OVER, JobState
from coordinator.dispatch.port import Wake
from tests.harness.memory_rows import Rows
from tests.harness.memory_tables import MemberRow


def release_due(rows: Rows) -> Wake:
    """As `PostgresDispatch.release_due`, in one transaction."""
    events: dict[int, list[tuple[int, JobEvent]]] = defaultdict(list)
    for key, row in rows.jobs.items():
        if row.due_at is not None and row.due_at <= rows.clock() and row.job.state is JobState.WAITING:
            events[row.run_id].append((key, DelayOver()))
    wake = rows.settle(events)
    for run_id, run in rows.runs.items():
        for stage in [each for each, when in run.expires.items() if when <= rows.clock()]:
            run.doors[stage] = replace(run.doors[stage], state=DoorState.EXPIRED, sentence="nobody approved it in time")
            wake = wake | rows.look_at_doors(run_id, (stage,))
            run.expires.pop(stage, None)
    for key in dict.fromkeys(each.key for each in rows.members if not each.entered and not each.leaving):
        wake = wake | _admit(rows, [each for each in rows.members if each.key == key])
    return wake


def _admit(rows: Rows, members: list[MemberRow]) -> Wake:
    admission = admit([_member(rows, place, each) for place, each in enumerate(members)])
    wake = Wake()
    for place in admission.enter:
        member = members[place]
        member.entered = True
        if member.job_id is not None:
            wake = wake | rows.settle({member.run_id: [(member.job_id, Entered())]})
            continue
        run = rows.runs[member.run_id]
        gates = [run.gates[stage] for stage in sorted(run.gates)]
        standing = {stage: door.state for stage, door in run.doors.items()}
        begins = enter([rows.jobs[key].job for key in run.jobs], gates, standing)
        wake = wake | rows.settle({member.run_id: begins.events}) | rows.look_at_doors(member.run_id, begins.doors)
    for place, sentence in admission.cancel:
        member = members[place]
        member.leaving = True
        if member.job_id is None:
            wake = wake | cancel_run(rows, member.run_id, sentence)
        elif rows.jobs[member.job_id].job.is_idle:
            wake = wake | rows.settle({member.run_id: [(member.job_id, Canceled(sentence))]})
        else:
            wake = wake | rows.halt({member.job_id: sentence})
    return wake


def _member(rows: Rows, place: int, row: MemberRow) -> Member:
    run = rows.runs[row.run_id]
    jobs = [rows.jobs[key].job for key in run.jobs if row.job_id in (None, key)]
    busy = (JobState.QUEUED, JobState.RUNNING)
    return Member(
        place,
        rows.jobs[row.job_id].job.key if row.job_id is not None else f"run {row.run_id}",
        row.group.limit,
        row.group.when_full,
        entered=row.entered,
        leaving=row.leaving,
        deploys=any(job.at_most_once and (job.state in busy or rows.jobs[job.id].due_at is not None) for job in jobs),
    )


def cancel_run(rows: Rows, run_id: int, sentence: str) -> Wake:
    """As `coordinator.store.canceling.cancel_run`."""
    row = rows.runs[run_id]
    if row.run.state in RUN_OVER:
        return Wake()
    jobs = [rows.jobs[key].job for key in row.jobs]
    doomed = ended_by_cancel(row.run, jobs, has_place=rows.has_place(run_id))
    for lease in [each for each in rows.leases.values() if each.job_id in doomed]:
        rows.cancel_lease(lease, sentence)
    idle = [key for key in row.jobs if key in doomed and (rows.jobs[key].job.is_idle or key in rows.queue)]
    asked = replace(row.run, canceling=True, sentence=sentence)
    events = {run_id: [(key, Canceled(sentence)) for key in idle]}
    return rows.settle(events, {run_id: asked}) | Wake(cancels=True)
