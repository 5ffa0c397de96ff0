"""One database and two replicas' stores on it, in memory or in PostgreSQL, with words to look inside."""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import asyncpg

from coordinator.api.expansions import Expansions, ExpansionStore
from coordinator.api.extensions import Extensions, ExtensionStore
from coordinator.api.new_runs import new_run
from coordinator.core.matching import Ability, Requirement
from coordinator.core.states import AttemptState, Cause
from coordinator.dispatch.bells import LocalBells
from coordinator.dispatch.port import (
    Answer,
    Beat,
    Claimed,
    DispatchStore,
    EndedReport,
    GivenUp,
    Held,
    Hello,
    Opened,
    StartedReport,
    Wake,
    Want,
)
from coordinator.store.database import Database
from coordinator.store.dispatching import PostgresDispatch
from coordinator.store.expanding import PostgresExpansions
from coordinator.store.extending import PostgresExtensions
from coordinator.store.new_rows import NewJob, NewRun, NewStage
from coordinator.store.runs import PostgresRuns
from coordinator.store.singletons import Singleton
from coordinator.store.sql import statements
from headrace.pipeline import Event, expand, load
from headrace.v1 import agent_pb2, common_pb2, run_pb2
from headrace.v1.common_pb2 import JobSpec
from tests.harness.memory_extending import MemoryExtensions
from tests.harness.memory_rows import Rows
from tests.harness.memory_runs import MemoryRuns, MemoryTerm
from tests.harness.memory_store import MemoryDispatch
from tests.harness.pgbouncer import PgBouncer

FLEET = statements("fleet")
ABILITIES = (Ability("bubblewrap", frozenset({"full", "none"})),)
Needs = tuple[str, ...] | None


@dataclass(frozen=True)
class J:
    """A job of a test's run."""

    key: str
    stage: int = 0
    needs: Needs = None
    labels: tuple[tuple[str, str], ...] = ()
    pool: str = "default"
    environment: str = ""


class Heard:
    """Bells that only remember."""

    def __init__(self) -> None:
        self.wakes: list[Wake] = []

    def ring(self, wake: Wake) -> None:
        self.wakes.append(wake)


class World:
    """What both kinds of store are asked in these tests. `at` and `beside` are two replicas' stores."""

    at: DispatchStore
    beside: DispatchStore
    runs: Any
    bells: Heard
    growing: ExtensionStore
    expanding: ExpansionStore

    def __init__(self) -> None:
        self.rng = random.Random(7)
        self.numbers = itertools.count(1)
        self.now = 0.0
        self.bells = Heard()

    # What people do

    async def run(self, *jobs: J, request: str = "", repository: str = "r", priority: int = 0) -> dict[str, int]:
        """Creates a run; returns the ids of its jobs by key, and its own under the empty key."""
        run_id, ids = await self.runs.allocate(len(jobs))
        stages = max(job.stage for job in jobs) + 1
        environments = {job.stage: job.environment for job in jobs}
        new = NewRun(
            id=run_id,
            repository=repository,
            project="p",
            pipeline="ci",
            pipeline_file="headrace.yml",
            pipeline_text=b"",
            source=b"",
            commit="0" * 40,
            event="manual",
            trusted=True,
            parameters={},
            priority=priority,
            stages=tuple(NewStage(f"s{stage}", environments.get(stage, "")) for stage in range(stages)),
            jobs=tuple(
                NewJob(
                    key,
                    job.key,
                    job.stage,
                    job.needs,
                    job.key.encode(),
                    Requirement(job.pool, job.labels, "any", "none"),
                    job.environment,
                )
                for key, job in zip(ids, jobs, strict=True)
            ),
        )
        made = await self.runs.create(request or self.request(), new)
        return {"": made, **{job.key: key for key, job in zip(ids, jobs, strict=True)}}

    async def pipeline(self, text: str, *, branch: str = "main", trusted: bool = True) -> dict[str, int]:
        """Creates a run of a pipeline file; returns ids as `run` does."""
        plan = expand(load(text.encode(), "headrace.yml"), Event("push", branch=branch))
        run_id, ids = await self.runs.allocate(len(plan.jobs))
        source = common_pb2.Source(repository="r", commit="0" * 40, path="/r", branch=branch)
        asked = run_pb2.CreateRunRequest(source=source, event="push", pipeline_text=text.encode())
        new = replace(new_run(asked, plan, run_id, ids, ""), trusted=trusted)
        made = await self.runs.create(self.request(), new)
        await self.at.release_due()
        return {"": made, **{job.key: key for key, job in zip(ids, plan.jobs, strict=True)}}

    async def work(self, session: str, *, but: Sequence[int] = (), **outcomes: AttemptState) -> list[str]:
        """Agents work until nothing more can happen by itself; jobs of the ids in `but` are begun and go on.

        Returns the keys of the jobs in the order in which they began. `outcomes`: by key; what is not named passes.
        """
        begun: list[str] = []
        while claimed := await self.claim(session, 100, number=next(self.numbers)):
            for job in claimed:
                await self.start(job)
                key = JobSpec.FromString(job.spec).job
                begun.append(key)
                if job.job_id not in but:
                    await self.end(job, outcomes.get(key, AttemptState.PASSED))
            await self.at.release_due()
        return begun

    async def extend(self, claimed: Claimed, text: str, step: int = 0) -> agent_pb2.ExtendResponse:
        """A step of a running attempt has written something to `$HEADRACE_PIPELINE`."""
        request = agent_pb2.ExtendRequest(
            attempt_id=claimed.attempt_id, token=claimed.token, step=step, text=text.encode()
        )
        return await Extensions(self.growing, run_url="").extend(request)

    def request(self) -> str:
        return f"request-{next(self.numbers):06d}"

    async def cancel(self, run_id: int) -> None:
        await self.runs.cancel(self.request(), run_id, "enough")

    async def retry(self, run_id: int, job: str = "") -> None:
        await self.runs.retry(self.request(), run_id, job)

    # What agents do

    def session_id(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def hello(self, name: str = "a", *, held: Sequence[Claimed] = (), instance: str = "", **more: Any) -> Hello:
        facts: dict[str, Any] = {"pool": "default", "labels": {}, "slots": 4} | more
        mine = tuple(Held(each.attempt_id, each.token) for each in held)
        return Hello(name=name, instance=instance or f"i-{name}", version="1", abilities=ABILITIES, held=mine, **facts)

    async def open(self, name: str = "a", **more: Any) -> Opened:
        return await self.at.open_session(self.hello(name, **more), self.session_id(), str(uuid.UUID(int=1)))

    async def claim(self, session: str, slots: int = 1, *, number: int = 1) -> list[Claimed]:
        classes = await self.at.classes()
        return list(await self.at.claim(list(classes), [Want(session, slots, number)]))

    async def start(self, claimed: Claimed, report: str = "") -> Answer:
        found = await self.at.report([started(claimed, report)])
        return found[0]

    async def end(
        self, claimed: Claimed, outcome: AttemptState = AttemptState.PASSED, report: str = "", outputs: str = ""
    ) -> Answer:
        found = await self.at.report([replace(ended(claimed, outcome, report), outputs=outputs)])
        return found[0]

    async def expand(self) -> int:
        """A replica works out the matrices that are due; how many there were."""
        return await Expansions(self.expanding, LocalBells(), run_url="").once()

    async def beat(self, session: str, highest: int, *held: Claimed) -> bool:
        pulse = await self.at.heartbeat([Beat(session, highest, frozenset(each.attempt_id for each in held))])
        await self.at.settle_missing(pulse.missing)
        return session in pulse.alive

    async def give_up(self, claimed: Claimed, *, session: str = "", token: bytes = b"") -> frozenset[int]:
        given = GivenUp(claimed.attempt_id, session or claimed.session_id, token or claimed.token, "refused")
        return await self.at.give_up([given])

    async def expire(self, *sessions: str) -> Sequence[str]:
        counters = (await self.at.observe()).counters
        return await self.at.expire({key: counters[key] for key in sessions}, await self.term())

    # What one sees

    async def term(self) -> str:
        raise NotImplementedError

    async def pause(self, pool: str, *, paused: bool) -> None:
        raise NotImplementedError

    async def drain(self, agent: str, *, drained: bool) -> None:
        raise NotImplementedError

    async def jobs(self, run_id: int) -> dict[str, tuple[str, str]]:
        """Key -> (state, sentence)."""
        raise NotImplementedError

    async def state(self, run_id: int, key: str = "") -> str:
        """The state of a run, or of one of its jobs."""
        raise NotImplementedError

    async def attempts(self, job_id: int) -> list[str]:
        """The states of a job's attempts, oldest first."""
        raise NotImplementedError

    async def queued(self) -> list[int]:
        raise NotImplementedError

    async def vt(self, job_id: int) -> float:
        raise NotImplementedError

    async def standing(self) -> dict[str, int]:
        raise NotImplementedError

    async def forget(self, job_id: int) -> None:
        """A defect, on purpose: the job waits for nothing and nobody looks at it."""
        raise NotImplementedError

    async def age(self, seconds: float) -> None:
        """Everything queued was queued, what is out of contact was lost, what is due is due, so much earlier."""
        raise NotImplementedError


def started(claimed: Claimed, report: str = "") -> StartedReport:
    return StartedReport(report or f"s-{claimed.attempt_id}", claimed.attempt_id, claimed.token)


def ended(claimed: Claimed, outcome: AttemptState = AttemptState.PASSED, report: str = "") -> EndedReport:
    causes = {AttemptState.PASSED: Cause.NONE, AttemptState.ERRORED: Cause.ERRORED}
    cause = causes.get(outcome, Cause.STEP_FAILED)
    name = report or f"e-{claimed.attempt_id}"
    return EndedReport(name, claimed.attempt_id, claimed.token, outcome, cause, "told", b"", {"main": 0})


class MemoryWorld(World):
    """Over plain dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = Rows(lambda: self.now)
        self.at, self.beside = (
            MemoryDispatch(self.rows, self.bells, lambda: self.rng.randbytes(16), quarantine_after=3) for _ in range(2)
        )
        self.runs = MemoryRuns(self.rows, self.bells)
        self.growing = self.expanding = MemoryExtensions(self.rows, self.bells)
        self.singleton = MemoryTerm(self.rows, "reaper", lambda: self.now, lease_s=30, make_id=self.session_id)

    async def term(self) -> str:
        return await self.singleton.hold() or ""

    async def pause(self, pool: str, *, paused: bool) -> None:
        self.rows.pools[pool].paused = paused

    async def drain(self, agent: str, *, drained: bool) -> None:
        row = self.rows.agents[agent]
        row.drained = drained
        if not drained:
            row.errored, row.quarantine = 0, ""

    async def jobs(self, run_id: int) -> dict[str, tuple[str, str]]:
        found = [self.rows.jobs[key].job for key in self.rows.runs[run_id].jobs]
        return {job.key: (str(job.state), job.sentence) for job in found}

    async def state(self, run_id: int, key: str = "") -> str:
        return (await self.jobs(run_id))[key][0] if key else str(self.rows.runs[run_id].run.state)

    async def attempts(self, job_id: int) -> list[str]:
        found = [row.attempt for row in self.rows.attempts.values() if row.attempt.job_id == job_id]
        return [str(each.state) for each in found]

    async def queued(self) -> list[int]:
        return sorted(self.rows.queue)

    async def vt(self, job_id: int) -> float:
        found = self.rows.jobs[job_id].vt
        assert found is not None
        return found

    async def standing(self) -> dict[str, int]:
        return self.rows.standing()

    async def forget(self, job_id: int) -> None:
        row = self.rows.jobs[job_id]
        row.job = replace(row.job, unfinished=0)

    async def age(self, seconds: float) -> None:
        self.now += seconds


class PostgresWorld(World):
    def __init__(self, database: Database, dsn: str) -> None:
        super().__init__()
        self.database = database
        self.dsn = dsn
        self.at, self.beside = (
            PostgresDispatch(database, self.bells, lambda: self.rng.randbytes(16), quarantine_after=3) for _ in range(2)
        )
        self.runs = PostgresRuns(database, self.bells, long_lease_s=600.0)
        self.growing = PostgresExtensions(database, self.bells)
        self.expanding = PostgresExpansions(database, self.bells)
        self.singleton = Singleton(database, "reaper", lambda: self.now)

    @classmethod
    async def opened(cls, dsn: str, up: AsyncExitStack, pooler: PgBouncer | None = None) -> PostgresWorld:
        opening = Database.open(pooler.dsn_of(dsn) if pooler else dsn, size=8, pooler=bool(pooler))
        return cls(await up.enter_async_context(opening), dsn)

    async def fetch(self, statement: str, *values: object) -> list[asyncpg.Record]:
        async with self.database.connection() as db:
            found: list[asyncpg.Record] = await db.fetch(statement, *values)
        return found

    async def value(self, statement: str, *values: object) -> Any:
        rows = await self.fetch(statement, *values)
        return rows[0][0] if rows else None

    async def term(self) -> str:
        return await self.singleton.hold() or ""

    async def pause(self, pool: str, *, paused: bool) -> None:
        await self.fetch("UPDATE pool SET paused = $2 WHERE name = $1", pool, paused)

    async def drain(self, agent: str, *, drained: bool) -> None:
        await self.fetch(FLEET.drain, agent, drained)

    async def jobs(self, run_id: int) -> dict[str, tuple[str, str]]:
        rows = await self.fetch("SELECT key, state, sentence FROM job WHERE run_id = $1 ORDER BY place", run_id)
        return {row["key"]: (row["state"], row["sentence"]) for row in rows}

    async def state(self, run_id: int, key: str = "") -> str:
        if key:
            return (await self.jobs(run_id))[key][0]
        return str(await self.value("SELECT state FROM run WHERE id = $1", run_id))

    async def attempts(self, job_id: int) -> list[str]:
        return [
            row["state"] for row in await self.fetch("SELECT state FROM attempt WHERE job_id = $1 ORDER BY id", job_id)
        ]

    async def queued(self) -> list[int]:
        return [row["job_id"] for row in await self.fetch("SELECT job_id FROM queue ORDER BY job_id")]

    async def vt(self, job_id: int) -> float:
        return float(await self.value("SELECT vt FROM job WHERE id = $1", job_id))

    async def standing(self) -> dict[str, int]:
        from coordinator.store.views import Views

        return dict(await Views(self.database, self.bells).standing())

    async def forget(self, job_id: int) -> None:
        await self.fetch("UPDATE job SET unfinished = 0 WHERE id = $1", job_id)

    async def age(self, seconds: float) -> None:
        await self.fetch("UPDATE queue SET queued_at = queued_at - make_interval(secs => $1)", seconds)
        columns = (
            ("lease", "orphaned_at"),
            ("attempt", "out_of_contact_since"),
            ("job", "due_at"),
            ("stage", "expires_at"),
        )
        for table, column in columns:
            await self.fetch(f"UPDATE {table} SET {column} = {column} - make_interval(secs => $1)", seconds)
