"""Attempts in PostgreSQL: claimed, started, ended, given up. Each function runs inside a transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeGuard

import asyncpg

from coordinator.core import attempt as machine
from coordinator.core import quarantine
from coordinator.core.attempt import Attempt, Gone
from coordinator.core.events import AttemptEnded, AttemptReturned, AttemptStarted, JobEvent
from coordinator.core.quarantine import Reliance, Told
from coordinator.core.rules import rules_from_json as job_rules
from coordinator.core.run import Run
from coordinator.core.states import ATTEMPT_LIVE, AttemptState, Cause, StaleToken
from coordinator.dispatch.port import Answer, Claimed, EndedReport, GivenUp, Permit, Report, StartedReport, Wake, Want
from coordinator.store.database import Connection
from coordinator.store.logs import LogFinal, close_logs, lost_logs
from coordinator.store.settle import lock_runs, settle
from coordinator.store.sql import statements

SQL = statements("dispatch")
SETTLE = statements("settle")

# What one claim takes, at most: the next follows at once, and no statement runs into its timeout.
MOST_CLAIMED = 500


async def claim(
    db: Connection, classes: Sequence[int], wants: Sequence[Want], make_token: Callable[[], bytes]
) -> list[Claimed]:
    """Takes the next jobs of these classes and leases them, most free slots first.

    No session gets more than its agent's slots, whatever it wants: an agent that lies would take all there is.
    """
    found = await db.fetch(SQL.share_sessions, [want.session_id for want in wants])
    free = {str(row["id"]): row["free"] for row in found}
    wants = [replace(want, slots=min(want.slots, free.get(want.session_id, 0))) for want in wants]
    wants = [want for want in wants if want.slots > 0]
    if not wants:
        return []
    picked = await db.fetch(SQL.claim, list(classes), min(MOST_CLAIMED, sum(want.slots for want in wants)))
    if not picked:
        return []
    picked.sort(key=lambda row: (-row["prio"], row["vt"], row["job_id"]))
    given = _deal([row["job_id"] for row in picked], wants)
    by_job = {row["job_id"]: row for row in picked}
    present: dict[str, float] = {}
    for row in picked:
        present[row["pool"]] = max(present.get(row["pool"], 0.0), row["vt"])
    pools = sorted(present)
    await db.execute(SQL.raise_pools, pools, [present[pool] for pool in pools])
    rows = await db.fetch(
        SQL.lease,
        [job for job, _, _ in given],
        [session for _, session, _ in given],
        [number for _, _, number in given],
        [make_token() for _ in given],
    )
    return [
        Claimed(
            session_id=str(row["session_id"]),
            number=row["number"],
            attempt_id=row["id"],
            token=row["token"],
            job_id=row["job_id"],
            run_id=row["run_id"],
            class_id=by_job[row["job_id"]]["cls"],
            attempt_try=row["try"],
            spec=row["spec"],
            needs=row["given"],
            waited_s=by_job[row["job_id"]]["waited"],
        )
        for row in rows
    ]


def _deal(jobs: Sequence[int], wants: Sequence[Want]) -> list[tuple[int, str, int]]:
    """Deals jobs in order to the session with the most free slots: (job, session, assignment number)."""
    free = {want.session_id: want.slots for want in wants}
    numbers = {want.session_id: want.next_number for want in wants}
    dealt = []
    for job in jobs:
        session = max(free, key=lambda each: free[each])
        dealt.append((job, session, numbers[session]))
        free[session] -= 1
        numbers[session] += 1
    return dealt


class Recorded(NamedTuple):
    """What reports came to. `told`: by agent, how its attempts ended, where that changes how far it is relied on."""

    answers: list[Answer]
    wake: Wake
    told: Mapping[int, Sequence[Told]]


async def report(db: Connection, reports: Sequence[Report]) -> Recorded:
    """Records what agents say of attempts, and what follows from it."""
    ids = sorted({each.attempt_id for each in reports})
    rows = await _locked(db, ids)
    attempts = {row["id"]: _attempt_of(row) for row in rows.attempts}
    facts = {row["id"]: row for row in rows.attempts}
    events: dict[int, list[tuple[int, JobEvent]]] = defaultdict(list)
    details: dict[int, bytes] = {}
    outputs: dict[int, str] = {}
    finals: dict[int, LogFinal] = {}
    told: dict[int, list[Told]] = defaultdict(list)
    answers = []
    for each in reports:
        known = attempts.get(each.attempt_id)
        if known is None:
            answers.append(Answer(each.id, each.attempt_id, abort=True, sentence="the coordinator does not know it"))
            continue
        row = facts[known.id]
        try:
            steps = machine.told(known, _event_of(each))
        except StaleToken as error:
            answers.append(Answer(each.id, each.attempt_id, abort=True, sentence=str(error)))
            if _is_last_word(each, known):
                finals[known.id] = LogFinal(known.id, dict(each.log_records))
            continue
        answers.append(Answer(each.id, each.attempt_id))
        for after in steps:
            attempts[known.id] = after
            event = _job_event(after, each, canceling=_is_canceling(row, rows.runs))
            events[row["run_id"]].append((row["job_id"], event))
        if steps and isinstance(each, EndedReport):
            told[row["agent_id"]].append(Told(each.outcome, each.cause, each.sentence))
            details[known.id] = each.details
            outputs[row["job_id"]] = each.outputs
            finals[known.id] = LogFinal(known.id, dict(each.log_records))
    changed = [each for key, each in attempts.items() if each != _attempt_of(facts[key])]
    await _write(db, changed, details)
    if outputs:
        await db.execute(SETTLE.keep_outputs, list(outputs), list(outputs.values()))
    if finals:
        await close_logs(db, list(finals.values()))
    wake = await settle(db, rows.runs, events)  # last: what it locks is shared by all runs of a project
    failing = {row["agent_id"] for row in rows.attempts if row["agent_errored"]}
    telling = {key: each for key, each in told.items() if key in failing or any(one.counts for one in each)}
    return Recorded(answers, wake, telling)


async def rely(db: Connection, told: Mapping[int, Sequence[Told]], most: int) -> Wake:
    """Counts what agents told, and quarantines those that the machinery has failed on `most` times in a row."""
    rows = await db.fetch(SQL.lock_reliances, sorted(told))
    known = {row["id"]: Reliance(row["name"], row["errored"], row["quarantine"]) for row in rows}
    now = {key: quarantine.after(each, told[key], most) for key, each in known.items()}
    columns = list(now), [each.errored for each in now.values()], [each.quarantine for each in now.values()]
    await db.execute(SQL.write_reliances, *columns)
    return Wake(agents=any(each.quarantine != known[key].quarantine for key, each in now.items()))


def _is_last_word(each: Report, known: Attempt) -> TypeGuard[EndedReport]:
    """Whether a late outcome of a lost attempt says how long its log is: readers need not wait an hour for more."""
    return isinstance(each, EndedReport) and known.state is AttemptState.LOST and known.token == each.token


async def gone(db: Connection, held: Mapping[int, str | None], sentence: str) -> Wake:
    """Gives attempts up: the started are lost, the others returned. `held`: id -> its session; None: orphaned.

    What is over, or in other hands than when it was read without locks, stays as it is.
    """
    if not held:
        return Wake()
    rows = await _locked(db, sorted(held))
    living = [
        row
        for row in rows.attempts
        if AttemptState(row["state"]) in ATTEMPT_LIVE and _text(row["session_id"]) == held[row["id"]]
    ]
    return await _settle_gone(db, rows.runs, living, dict.fromkeys(held, sentence))


def _text(session_id: object) -> str | None:
    return None if session_id is None else str(session_id)


async def give_up(db: Connection, returned: Sequence[GivenUp]) -> tuple[frozenset[int], Wake]:
    """Returns assignments that have not started and that no other session has resumed; the others stay as they are."""
    given = {each.attempt_id: each for each in returned}
    rows = await _locked(db, sorted(given))
    found = [
        row
        for row in rows.attempts
        if AttemptState(row["state"]) is AttemptState.LEASED
        and row["token"] == given[row["id"]].token
        and str(row["session_id"]) == given[row["id"]].session_id
    ]
    wake = await _settle_gone(db, rows.runs, found, {key: each.sentence for key, each in given.items()})
    return frozenset(row["id"] for row in found), wake


async def _settle_gone(
    db: Connection, runs: Mapping[int, Run], living: Sequence[asyncpg.Record], sentences: Mapping[int, str]
) -> Wake:
    events: dict[int, list[tuple[int, JobEvent]]] = defaultdict(list)
    changed = []
    for row in living:
        known = _attempt_of(row)
        after = machine.step(known, Gone(sentences[known.id]))
        changed.append(after)
        events[row["run_id"]].append((row["job_id"], _job_event(after, None, canceling=_is_canceling(row, runs))))
    if not changed:
        return Wake()
    wake = await settle(db, runs, events)
    await _write(db, changed, {})
    if lost := [each.id for each in changed if each.state is AttemptState.LOST]:
        await lost_logs(db, lost)
    return wake


class _Locked:
    """Attempts under the locks of their sessions and runs, in that order."""

    __slots__ = ("attempts", "runs")

    def __init__(self, runs: dict[int, Run], attempts: Sequence[asyncpg.Record]) -> None:
        self.runs = runs
        self.attempts = attempts


async def _locked(db: Connection, ids: Sequence[int]) -> _Locked:
    owners = await db.fetch(SQL.runs_of_attempts, ids)
    await db.execute(SQL.share_sessions_of, ids)
    runs = await lock_runs(db, {row["run_id"] for row in owners})
    return _Locked(runs, await db.fetch(SQL.attempts, ids))


async def _write(db: Connection, changed: Iterable[Attempt], details: Mapping[int, bytes]) -> None:
    changed = list(changed)
    if not changed:
        return
    await db.execute(
        SQL.write_attempts,
        [each.id for each in changed],
        [each.state for each in changed],
        [each.cause for each in changed],
        [each.sentence for each in changed],
        [each.started_report for each in changed],
        [each.ended_report for each in changed],
        [details.get(each.id) for each in changed],
    )
    if over := [each.id for each in changed if each.state not in ATTEMPT_LIVE]:
        await db.execute(SQL.delete_leases, over)
    if begun := [each.id for each in changed if each.state is AttemptState.RUNNING]:
        await db.execute(SQL.leases_running, begun)


async def permit(db: Connection, attempt_id: int, token: bytes, nonce: str) -> Permit:
    """Grants the start permit: the same nonce may ask again and gets the same number."""
    await db.execute(SQL.share_sessions_of, [attempt_id])
    row = await db.fetchrow(SQL.permit, attempt_id, token, nonce)
    if row is None:
        return Permit(granted=False, sentence="another start of this deployment holds the permit, or it was canceled")
    fencing: int = row["fencing"]
    if not fencing:
        fencing = await db.fetchval(SQL.fence, row["job_id"])
        await db.execute(SQL.keep_fence, attempt_id, fencing)
    return Permit(granted=True, fencing_token=fencing)


def _attempt_of(row: asyncpg.Record) -> Attempt:
    return Attempt(
        id=row["id"],
        job_id=row["job_id"],
        token=row["token"],
        state=AttemptState(row["state"]),
        started_report=row["started_report"],
        ended_report=row["ended_report"],
        cause=Cause(row["cause"]),
        sentence=row["sentence"],
    )


def _event_of(each: Report) -> machine.Started | machine.Ended:
    if isinstance(each, StartedReport):
        return machine.Started(each.token, each.id)
    return machine.Ended(each.token, each.id, each.outcome, each.cause, each.sentence)


def _is_canceling(row: asyncpg.Record, runs: Mapping[int, Run]) -> bool:
    """Whether somebody wants it ended. A job that runs although its run is canceled is ended by its own lease alone."""
    survives = job_rules(row["rules"]).survives_cancel
    return row["canceling"] or (runs[row["run_id"]].canceling and not survives)


def _job_event(after: Attempt, told: Report | None, *, canceling: bool) -> JobEvent:
    if after.state is AttemptState.RUNNING:
        return AttemptStarted()
    if after.state is AttemptState.RETURNED:
        return AttemptReturned(canceling)
    if isinstance(told, EndedReport):
        return AttemptEnded(after.state, after.cause, after.sentence, canceling, told.exit_code, told.log_patterns)
    return AttemptEnded(after.state, after.cause, after.sentence, canceling)
