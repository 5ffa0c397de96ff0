"""The whole simulation: two replicas, some machines, people, and everything that can go wrong. A seed is all of it."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import random
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coordinator.core.matching import Requirement
from coordinator.dispatch.dispatcher import Timing
from coordinator.dispatch.port import Wake
from coordinator.errors import Conflict, NotFound, StoreDown
from coordinator.store.new_rows import NewJob, NewRun, NewStage
from tests.chaos.simulation.freezing import queue_of
from tests.chaos.simulation.judge import OVER, Judge, Wanted
from tests.chaos.simulation.line import Clog, Line
from tests.chaos.simulation.machine import Machine
from tests.chaos.simulation.replica import Dialer, Replica
from tests.harness.memory_rows import Rows
from tests.harness.virtual_time import VirtualLoop, simulate

LONG_LEASE = 90.0
"""Seconds: short enough that some agents are away for longer."""
CHAOS = (120.0, 120.0, 360.0)
"""Virtual seconds in which things go wrong: one of these."""
_MEMORY = Path("/dev/shm")
REST = 9_000.0
"""Virtual seconds after the last fault within which every run must have ended."""


@dataclass(frozen=True)
class Outcome:
    """What came of one seed. `digest`: of the whole trace, to compare two runs of it."""

    seed: int
    complaints: tuple[str, ...]
    trace: tuple[str, ...]
    seconds: float
    """Virtual."""

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()


def run_seed(seed: int) -> Outcome:
    """Simulates one seed to its end."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        return simulate(functools.partial(_main, seed, Path(folder)), seed)


class World:
    """Everything there is."""

    def __init__(self, rng: random.Random, folder: Path) -> None:
        self.loop = asyncio.get_running_loop()
        self.rng = rng
        self.judge = Judge(self.loop.time, LONG_LEASE)
        self.rows = Rows(self.loop.time)
        timing = Timing(long_lease=LONG_LEASE)
        self.replicas = {
            name: Replica(name, self.rows, rng=self._rng(), judge=self.judge, timing=timing, tell=self._tell)
            for name in ("north:1", "south:1", "west:1")[: rng.randint(1, 3)]
        }
        self.clog = Clog()
        self.dialers = {
            f"m{n}": Dialer(f"m{n}", self.replicas, self._rng(), self._rng, self.clog) for n in range(rng.randint(1, 3))
        }
        self.machines = [
            Machine(
                name,
                rng.randint(1, 3),
                dialer=dialer,
                log_dialer=dialer.for_logs(),
                folder=folder / name,
                read=lambda: self.rows,
                addresses=tuple(self.replicas),
                rng=self._rng(),
                judge=self.judge,
                long_lease=LONG_LEASE,
            )
            for name, dialer in self.dialers.items()
        ]
        self.judge.holds = lambda agent, attempt: any(
            each.name == agent and each.has_to_report(attempt) for each in self.machines
        )
        self.wakes_lost = rng.choice((0.0, 0.3))
        self._requests = itertools.count(1)
        self._wakes = self._rng()
        self._tasks: list[asyncio.Task[None]] = []
        self._asking: set[asyncio.Task[None]] = set()

    def _rng(self) -> random.Random:
        """A stream of chance of its own: what one part draws does not change another's luck."""
        return random.Random(self.rng.getrandbits(64))

    def _tell(self, name: str, wake: Wake) -> None:
        """NOTIFY: to the other replicas, a little later, or not at all."""
        for replica in self.replicas.values():
            if replica.name != name and replica.up and self._wakes.random() >= self.wakes_lost:
                self.loop.call_later(self._wakes.uniform(0.001, 0.2), replica.bells.heard, wake)

    @property
    def lines(self) -> list[Line]:
        return [line for replica in self.replicas.values() for line in (*replica.lines, *replica.appends)]

    # People

    async def ask(self, name: str, call: Callable[[Replica], Awaitable[object]]) -> None:
        """A person's request, tried again under the same id until it is answered."""
        while True:
            for replica in self.replicas.values():
                if replica.up:
                    try:
                        await call(replica)
                    except StoreDown:
                        continue
                    except (Conflict, NotFound) as error:
                        self.judge.say(f"{name}: refused: {error}")
                        return
                    self.judge.say(f"{name}: done")
                    return
            await asyncio.sleep(1.0)

    def request(self) -> str:
        return f"request-{next(self._requests):04d}"

    async def create(self) -> None:
        request, wanted = self.request(), random_graph(self.rng)
        self.judge.graphs[request] = wanted
        self.judge.say(f"{request} wants {len(wanted)} jobs")
        priority = self.rng.randint(-1, 1)

        async def call(replica: Replica) -> None:
            if await replica.runs.run_of_request(request) is None:
                run_id, ids = await replica.runs.allocate(len(wanted))
                await replica.runs.create(request, new_run(run_id, ids, wanted, priority))

        await self.ask(request, call)
        self.judge.answered.add(request)

    async def cancel(self, run_id: int) -> None:
        request = self.request()
        await self.ask(
            f"{request} cancel of run {run_id}", lambda replica: replica.runs.cancel(request, run_id, "enough")
        )

    async def retry(self, run_id: int, job: str = "") -> None:
        """A person looks at nothing: what may still run somewhere is for the coordinator to know."""
        if run_id not in self.rows.runs:
            return
        for key in self.rows.runs[run_id].jobs:
            self.judge.asked_again[key] += 1
        request = self.request()
        await self.ask(
            f"{request} retry of run {run_id} {job}", lambda replica: replica.runs.retry(request, run_id, job)
        )

    def some_run(self) -> int | None:
        return self.rng.choice(sorted(self.rows.runs)) if self.rows.runs else None

    def meanwhile(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    def hear_agents(self) -> None:
        for replica in self.replicas.values():
            if replica.up:
                replica.bells.heard(Wake(agents=True, cancels=True))

    # The course of things

    def start(self) -> None:
        for replica in self.replicas.values():
            replica.start()
        for machine in self.machines:
            machine.boot()

    def calm(self) -> None:
        """No fault happens any more, and everything that was down comes back."""
        self.judge.say("calm")
        self.clog.open_all()
        for replica in self.replicas.values():
            replica.trouble.calm()
            replica.process.thaw()
            replica.start()
        for dialer in self.dialers.values():
            dialer.unreachable.clear()
        for machine in self.machines:
            if machine.gone:
                continue
            machine.refuses = 0.0
            machine.spools.heal()
            machine.process.thaw()
            for supervisor in machine.supervisors.values():
                supervisor.process.thaw()
            machine.boot()
        for line in self.lines:
            line.up.slow = line.down.slow = 0.02
        for agent in self.rows.agents.values():
            agent.drained = False
        self.rows.pools["default"].paused = False

    async def rest(self) -> None:
        """Waits until every run has ended; a person sees to what is blocked."""
        async with asyncio.timeout(REST):
            while self._asking or not self._all_over():
                await self.retry_blocked()
                await asyncio.sleep(5.0)
            while any(machine.disk for machine in self.machines if not machine.gone):  # noqa: ASYNC110  as above
                await asyncio.sleep(5.0)
        await asyncio.sleep(35.0)

    async def retry_blocked(self) -> None:
        for run_id, row in list(self.rows.runs.items()):
            if str(row.run.state) == "blocked":
                await self.retry(run_id)

    def _all_over(self) -> bool:
        return len(self.rows.runs) == len(self.judge.graphs) and all(
            str(row.run.state) in OVER for row in self.rows.runs.values()
        )

    async def stop(self) -> None:
        for task in self._asking:
            task.cancel()
        for machine in self.machines:
            await machine.crash()
            for supervisor in machine.supervisors.values():
                supervisor.kill("the simulation ends")
        for replica in self.replicas.values():
            await replica.crash()


async def _main(seed: int, folder: Path, rng: random.Random) -> Outcome:
    from tests.chaos.simulation.faults import Faults

    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.freezes = queue_of
    world = World(rng, folder)
    faults = Faults(world, random.Random(rng.getrandbits(64)))
    world.start()
    try:
        await faults.happen(rng.choice(CHAOS))
        world.calm()
        await world.rest()
    except TimeoutError:
        held = {machine.name: sorted(machine.disk) for machine in world.machines if machine.disk}
        stuck = {key: str(row.run.state) for key, row in world.rows.runs.items() if str(row.run.state) not in OVER}
        world.judge.complain(f"after {REST:g} s without a fault, runs have not ended: {stuck}; held: {held}")
    else:
        for replica in world.replicas.values():
            sessions, lines = replica.dispatch.sessions, len(replica.lines)
            world.judge.check(f"{replica.name} has {sessions} sessions on {lines} lines", holds=sessions == lines)
        world.judge.at_rest(world.rows, sum(replica.mended_in_all for replica in world.replicas.values()))
    finally:
        await world.stop()
    return Outcome(seed, tuple(world.judge.complaints), tuple(world.judge.trace), loop.time())


def random_graph(rng: random.Random) -> tuple[Wanted, ...]:
    """Stages with gates, needs across them, and deployments."""
    wanted: list[Wanted] = []
    stages = rng.randint(1, 3)
    for stage in range(stages):
        environment = "production" if rng.random() < 0.35 else ""
        for _ in range(rng.randint(1, 3)):
            needs = None
            if rng.random() < 0.35:
                needs = tuple(sorted(rng.sample([each.key for each in wanted], rng.randint(0, min(2, len(wanted))))))
            wanted.append(Wanted(f"j{len(wanted)}", stage, needs, environment))
    return tuple(wanted)


def new_run(run_id: int, ids: Sequence[int], wanted: tuple[Wanted, ...], priority: int) -> NewRun:
    environments = {each.stage: each.environment for each in wanted}
    return NewRun(
        id=run_id,
        repository="r",
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
        stages=tuple(NewStage(f"s{stage}", environments[stage]) for stage in sorted(environments)),
        jobs=tuple(
            NewJob(
                key,
                each.key,
                each.stage,
                each.needs,
                f"{key}|{each.environment}".encode(),
                Requirement("default", (), "any", "full"),
                each.environment,
            )
            for key, each in zip(ids, wanted, strict=True)
        ),
    )
