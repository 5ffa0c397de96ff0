"""What must hold once a campaign is over, with books of its own: the ledger, and what the scripts print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from headrace.client.log_records import LogBytes, LogEnd, LogGap
from headrace.client.sync_client import SyncClient
from headrace.client.types import Attempt, AttemptState, Job, JobState, Run, RunState
from tests.chaos.campaign.fleet import Fleet
from tests.chaos.campaign.work import JOBS_OF_A_RUN, People, name_of, printed
from tests.harness.waiting import wait_for

_MUST_BE_0 = ("lost_sight", "waiting_for_nothing", "queued_without_place")
_NOT_THE_COMMAND = {AttemptState.LOST, AttemptState.ERRORED}


@dataclass
class Verdict:
    """What was found wrong (nothing, it is hoped), and how much was looked at."""

    complaints: list[str] = field(default_factory=list)
    jobs: int = 0
    attempts: Counter[str] = field(default_factory=Counter)
    log_bytes: int = 0


def judge(fleet: Fleet, people: People) -> Verdict:
    """Looks at every run, job, attempt, log byte and ledger line. The fleet must be whole again."""
    verdict = Verdict()
    complain = verdict.complaints
    complain += [f"{type(each).__name__}: {each}" for each in people.problems]
    complain += [f"the ledger has a torn line: {each!r}" for each in fleet.ledger.torn]
    created = [row["id"] for row in fleet.postgres.rows("SELECT id FROM run ORDER BY id")]
    if created != sorted(people.started):
        complain.append(f"runs that nobody started: {sorted(set(created) - set(people.started))}")
    for series in _MUST_BE_0:
        if fleet.standing(f"headrace_{series}"):
            complain.append(f"headrace_{series} is {fleet.standing(f'headrace_{series}'):.0f}")
    books = _Books(fleet, people)
    with fleet.client() as client:
        for number in sorted(people.started):
            run = client.run(number)
            if run.state != RunState.PASSED or len(run.jobs) != JOBS_OF_A_RUN:
                complain.append(f"run {number}: {run.state} with {len(run.jobs)} jobs")
            for job in run.jobs:
                verdict.jobs += 1
                complain += [f"run {number}, {job.key}: {each}" for each in books.of_job(run, job)]
                for attempt in job.attempts:
                    verdict.attempts[str(attempt.state)] += 1
                    wrong, size = _log(client, run, job, attempt)
                    verdict.log_bytes += size
                    complain += [f"run {number}, {job.key}, attempt {attempt.number}: {each}" for each in wrong]
    return verdict


class _Books:
    """The ledger, held against what Headrace says."""

    def __init__(self, fleet: Fleet, people: People) -> None:
        self._machines = {each.daemon.arguments["name"]: each for each in fleet.machines}
        self._time = fleet.postgres.true_time
        self._retried = people.retried
        self._begun = fleet.ledger.count("begun")
        self._ended = fleet.ledger.count("ended")

    def of_job(self, run: Run, job: Job) -> Iterator[str]:
        """What is wrong with a job."""
        if job.state != JobState.PASSED:
            yield f"{job.state}, {job.cause}: {job.sentence}"
        passed = [each for each in job.attempts if each.state == AttemptState.PASSED]
        if len(passed) != 1 or job.attempts[-1] is not passed[0]:
            yield f"attempts {[str(each.state) for each in job.attempts]}"
        begun, ended = (book[run.id, name_of(job)] for book in (self._begun, self._ended))
        if begun < 1 or ended < 1:
            yield f"it passed, and the ledger has {begun} begins and {ended} ends"
        if job.name == "deploy":
            allowed = 1 + self._retried.get(run.id, 0)
            if begun > allowed:
                yield f"deployed {begun} times, {allowed} were asked for"
        for each in job.attempts:
            if each.state in _NOT_THE_COMMAND and not self._excused(each):
                yield f"attempt {each.number} on {each.agent} is {each.state} for no reason: {each.sentence}"

    def _excused(self, attempt: Attempt) -> bool:
        assert attempt.leased_at is not None
        assert attempt.ended_at is not None
        machine = self._machines[attempt.agent]
        return machine.excused(self._time(attempt.leased_at), self._time(attempt.ended_at))


def _log(client: SyncClient, run: Run, job: Job, attempt: Attempt) -> tuple[list[str], int]:
    """What is wrong with the log of an attempt, and how many bytes of it were compared."""
    if attempt.started_at is None:
        return [], 0
    wanted = printed(run.id, job, attempt.number)

    def whole() -> list[object] | None:
        found = list(client.tail(run.id, job.key, attempt=attempt.number, follow=False))
        sealed = isinstance(found[-1], LogEnd) and found[-1].complete
        return found if sealed else None

    try:
        records = wait_for(whole, "the end of the log", 30)
    except AssertionError:
        return ["its log is not sealed"], 0
    pieces = [each.data for each in records if isinstance(each, LogBytes) and not each.ours]
    has = b"".join(pieces)
    if attempt.state == AttemptState.PASSED:
        return ([] if has == wanted else [_differs(has, wanted)]), len(has)
    if any(isinstance(each, LogGap) for each in records):
        return [f"a piece that it never wrote: {each!r}" for each in pieces if each not in wanted], len(has)
    return ([] if wanted.startswith(has) else [_differs(has, wanted)]), len(has)


def _differs(has: bytes, wanted: bytes) -> str:
    at = next((n for n, (a, b) in enumerate(zip(has, wanted, strict=False)) if a != b), min(len(has), len(wanted)))
    return f"its log has {len(has)} bytes, {len(wanted)} were printed; byte {at} is the first that differs"
