"""Runs are created without a pause while replicas, agents and supervisors die at every point of a job's way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from coordinator.store.sql import statements
from headrace.client import Client, RetryPolicy, Source
from headrace.client.types import LogBytes, LogEnd
from headrace.errors import HeadraceError
from tests.chaos.failpoints.fleet import Keeper, free_ports, hits
from tests.chaos.failpoints.history import AttemptRow, History, JobRow
from tests.chaos.failpoints.points import AGENT, COORDINATOR, OFTEN, SUPERVISOR
from tests.integration.coordinator.processes import share_secrets

IN_FLIGHT = 8
"""Runs at a time: there is always something to claim."""
ENDING_S = 120.0
MISSES = 10
"""How often, for each time, a process may be started and not come to its point."""
LINES = 12
STEP = """\
echo "$HEADRACE_RUN_ID $HEADRACE_JOB $HEADRACE_ATTEMPT" >> {ledger}
i=0
while [ $i -lt {lines} ]; do
  echo "$HEADRACE_RUN_ID $HEADRACE_JOB $HEADRACE_ATTEMPT line $i"
  i=$((i + 1))
  if [ $((i % 4)) = 0 ]; then sleep 0.11; fi
done
"""
SOURCE = Source(repository="https://git.example/points.git", url="https://git.example/points.git", commit="0" * 40)
FLEET = statements("fleet")


@dataclass
class Played:
    """What it came to. `tally`: deaths at each point."""

    history: History
    tally: Mapping[str, int]
    seconds: float
    idle_s: float
    """From the last death to the end of the last run."""
    wanted: Mapping[str, int] = field(default_factory=dict)


def pipeline(ledger: Path) -> bytes:
    """Two jobs, and a deployment that waits for both: JSON, which is YAML as well."""
    step = {"run": STEP.format(ledger=ledger, lines=LINES), "shell": "sh"}
    job = {"sandbox": "host", "checkout": False, "steps": [step]}
    stages = [
        {"name": "build", "jobs": {"one": job, "two": job}},
        {"name": "ship", "environment": "production", "jobs": {"ship": job}},
    ]
    return json.dumps({"name": "points", "stages": stages}).encode()


def printed(run: int, job: str, number: int) -> bytes:
    """What an attempt of a job prints."""
    return "".join(f"{run} {job} {number} line {line}\n" for line in range(LINES)).encode()


class Play:
    """One fleet on one database, and all that is done to it."""

    def __init__(self, folder: Path, dsn: str, times: int, rng: random.Random, say: Callable[[str], object]) -> None:
        self._folder = folder
        self._dsn = dsn
        self._rng = rng
        self._say = say
        self._ledger = folder / "ledger"
        self._ports = free_ports(9, rng)
        self.replicas = [self._replica(number) for number in range(3)]
        self.agents: list[Keeper] = []
        self._asked = 0
        self._times = times
        self.missed: Counter[str] = Counter()
        """Lives that did not come to their points."""
        self._begun = time.monotonic()

    async def run(self) -> Played:
        """From the first start to the last end. Raises AssertionError, also for what is never reached or never ends."""
        async with contextlib.AsyncExitStack() as up:
            up.push_async_callback(self._close)
            await self._begin()
            db = await asyncpg.connect(self._dsn)
            up.push_async_callback(db.close)
            addresses = ",".join(f"127.0.0.1:{port}" for port in self._ports[:3])
            policy = RetryPolicy(patience=ENDING_S, patience_at_first=ENDING_S, most=0.5)
            token = self._token("client")
            client = await up.enter_async_context(Client(addresses, token, policy=policy, rng=self._rng))
            load = asyncio.create_task(self._load(client, db))
            try:
                await self._kill_all(load)
                died = time.monotonic()
            finally:
                load.cancel()
                await asyncio.gather(load, return_exceptions=True)
            await self._all_ended(db)
            idle = time.monotonic() - died
            standing = await self._standing(db)
            history = await self._history(db, client, standing)
            await self._stop(db, history)
            tally = Counter(each["point"] for each in hits(self._folder / "hits"))
            return Played(history, tally, time.monotonic() - self._begun, idle, self._wanted)

    # Beginning and end

    def _replica(self, number: int) -> Keeper:
        listen = dict(zip(("listen", "http-listen", "blob-listen"), self._ports[number::3], strict=True))
        environment = {
            "HEADRACE_DATABASE_URL": self._dsn,
            "HEADRACE_BLOB_URL": (self._folder / "blobs").as_uri(),
            "HEADRACE_LEASE_S": "30",
            "HEADRACE_HEARTBEAT_S": "1",
            # Every supervisor that is killed is an attempt that errs: an agent in quarantine would get no more.
            "HEADRACE_QUARANTINE_AFTER": "0",
        }
        arguments = {name: f"127.0.0.1:{port}" for name, port in listen.items()}
        return Keeper("coordinator", self._folder / f"replica{number}", arguments, environment)

    def _agent(self, number: int) -> Keeper:
        ports = self._ports[:3]
        ports = ports[number:] + ports[:number]
        url = ",".join(f"127.0.0.1:{port}" for port in ports)
        environment = {
            "HEADRACE_TOKEN": self._token("agent"),
            "HEADRACE_METRICS_LISTEN": "",
            "HEADRACE_ALLOW_HOST": "true",
        }
        arguments = {"name": f"agent{number}", "url": url, "slots": "4"}
        return Keeper("agent", self._folder / f"agent{number}", arguments, environment)

    def _token(self, whose: str) -> str:
        return (self.replicas[0].folder / "tokens" / whose).read_text().strip()

    async def _begin(self) -> None:
        """All daemons once, to make their folders; the replicas have the same tokens."""
        first, *others = self.replicas
        await first.start()
        await first.live()
        await first.ready()
        assert await first.stop() == 0, first.said
        for each in others:
            share_secrets(first.folder, each.folder)
            await each.start()
        self.agents = [self._agent(number) for number in range(3)]
        for agent in self.agents:
            await agent.start()

    async def _stop(self, db: asyncpg.Connection, history: History) -> None:
        """All leave in order, and nothing is left."""
        for each in [*self.agents, *self.replicas]:
            assert await each.stop() == 0, each.said[-4000:]
        left = {
            f"{table}s left": await db.fetchval(f"SELECT count(*) FROM {table}")
            for table in ("session", "lease", "queue")
        }
        for agent in self.agents:
            for name in ("attempts", "logs", "workspaces", "records"):
                folder = agent.folder / name
                kept = [each.name for each in folder.iterdir()] if folder.is_dir() else []
                left[f"{agent.folder.name}: {name} left ({kept[:5]})"] = len(kept)
        history.standing = {**history.standing, **left}

    async def _close(self) -> None:
        for each in [*self.agents, *self.replicas]:
            with contextlib.suppress(AttributeError):  # never started
                await each.close()

    # Work, and death

    async def _load(self, client: Client, db: asyncpg.Connection) -> None:
        text = pipeline(self._ledger)
        while True:
            if await db.fetchval("SELECT count(*) FROM run WHERE ended_at IS NULL") >= IN_FLIGHT:
                await asyncio.sleep(0.05)
                continue
            self._asked += 1
            try:
                await client.create_run(SOURCE, text, request_id=f"points-{self._asked:08d}")
            except asyncio.CancelledError:
                # Nobody knows whether it was made: it is asked for again, under the same id.
                await asyncio.shield(client.create_run(SOURCE, text, request_id=f"points-{self._asked:08d}"))
                raise

    def _schedule(self, points: Mapping[str, object]) -> list[tuple[str, int]]:
        found = [
            (name, self._rng.randint(1, OFTEN.get(name, 1 if name.startswith("supervisor") else 2)))
            for name in points
            for _ in range(self._times)
        ]
        self._rng.shuffle(found)
        return found

    async def _kill_all(self, load: asyncio.Task[None]) -> None:
        of_replicas, of_agents, of_supervisors = map(self._schedule, (COORDINATOR, AGENT, SUPERVISOR))
        self._wanted = Counter(name for name, _ in (*of_replicas, *of_agents, *of_supervisors))
        assert set(self._wanted) == {*COORDINATOR, *AGENT, *SUPERVISOR}
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._report(load))
            *victims, holder = self.agents
            agents = [group.create_task(self._kill(each, of_agents)) for each in victims]
            await holder.live(supervisors=of_supervisors)
            replicas = [group.create_task(self._kill(each, of_replicas, stays=False)) for each in self.replicas]
            # A replica that has nothing more to die of stays away: the others have to meet their points.
            await asyncio.wait(replicas)
            for each in self.replicas:
                await each.live()
            await asyncio.wait(agents)
            await self._until_hit(Counter(name for name, _ in of_supervisors))
            watching.cancel()

    async def _kill(self, victim: Keeper, schedule: list[tuple[str, int]], *, stays: bool = True) -> None:
        """Takes the next point, until there is none; then it lives on, or not."""
        while schedule:
            point = schedule.pop()
            if not await victim.die_at(*point):
                schedule.insert(0, point)
                self.missed[point[0]] += 1
                assert self.missed[point[0]] < MISSES * self._times, f"nobody comes to {point}"
        if stays:
            await victim.live()

    async def _until_hit(self, wanted: Counter[str]) -> None:
        """Waits for the supervisors, each of which an attempt has to be given first."""
        end = time.monotonic() + 60 + 2 * wanted.total()
        while missing := wanted - Counter(each["point"] for each in hits(self._folder / "hits")):
            assert time.monotonic() < end, f"supervisors did not come to their points: {missing}"
            await asyncio.sleep(0.2)

    async def _report(self, load: asyncio.Task[None]) -> None:
        while True:
            await asyncio.wait([load], timeout=10)
            if load.done():
                load.result()
            done = len(hits(self._folder / "hits"))
            self._say(
                f"{time.monotonic() - self._begun:6.0f} s: {done} of {sum(self._wanted.values())} deaths,"
                f" {self._asked} runs"
            )

    # What it came to

    async def _all_ended(self, db: asyncpg.Connection) -> None:
        end = time.monotonic() + ENDING_S
        while open_runs := await db.fetch("SELECT id, state, sentence FROM run WHERE ended_at IS NULL"):
            assert time.monotonic() < end, f"these runs do not end: {[tuple(each) for each in open_runs]}"
            await asyncio.sleep(0.05)

    async def _standing(self, db: asyncpg.Connection) -> dict[str, float]:
        names = ("lost_sight", "waiting_for_nothing", "queued_without_place")
        return {name: await db.fetchval(getattr(FLEET, name)) for name in names}

    async def _history(self, db: asyncpg.Connection, client: Client, standing: Mapping[str, float]) -> History:
        runs = {row["id"]: row["state"] for row in await db.fetch("SELECT id, state FROM run")}
        attempts: dict[int, list[AttemptRow]] = {}
        jobs = {row["id"]: row for row in await db.fetch("SELECT * FROM job ORDER BY id")}
        for row in await db.fetch("SELECT * FROM attempt ORDER BY id"):
            job, began = jobs[row["job_id"]], row["started_at"] is not None
            log, sealed = await _log(client, job["run_id"], job["key"], row["try"]) if began else (None, True)
            found = AttemptRow(row["id"], row["try"], row["state"], began, log, sealed, row["sentence"])
            attempts.setdefault(job["id"], []).append(found)
        rows = [
            JobRow(
                job["run_id"], job["key"], job["at_most_once"], job["state"], job["sentence"], attempts.get(key, []),
                {each.number: printed(job["run_id"], job["key"], each.number) for each in attempts.get(key, [])},
            )
            for key, job in jobs.items()
        ]  # fmt: skip
        killed = frozenset(each["note"] for each in hits(self._folder / "hits") if each["note"] is not None)
        return History(self._asked, runs, rows, _entries(self._ledger), killed, standing)


async def _log(client: Client, run: int, job: str, number: int) -> tuple[bytes, bool]:
    """What an attempt itself wrote, as a reader gets it, and whether that is all."""
    text, sealed = b"", False
    with contextlib.suppress(HeadraceError):
        async with contextlib.aclosing(client.tail(run, job, attempt=number, follow=False)) as records:
            async for record in records:
                if isinstance(record, LogBytes) and not record.ours:
                    text += record.data
                elif isinstance(record, LogEnd):
                    sealed = record.complete
    return text, sealed


def _entries(ledger: Path) -> Sequence[tuple[int, str, int]]:
    words = [line.split() for line in ledger.read_text().splitlines()]
    return [(int(run), job, int(number)) for run, job, number in words]
