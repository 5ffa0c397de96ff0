"""What goes wrong, and when: one fault after another, drawn by weight. Each heals by itself after a while."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable, Sequence

from headrace.v1 import agent_pb2 as pb
from headrace.v1 import common_pb2
from tests.chaos.simulation.line import Line
from tests.chaos.simulation.spooling import failing, full
from tests.chaos.simulation.world import World


class Faults:
    """The bad luck of one seed."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._kinds: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (6, self._run),
            (4, self._cut),
            (4, self._half_open),
            (2, self._slow_line),
            (3, self._replica_crash),
            (4, self._agent_crash),
            (1, self._machine_lost),
            (1, self._power_cut),
            (1, self._long_away),
            (1, self._machine_gone),
            (2, self._frozen),
            (2, self._replica_frozen),
            (1, self._supervisor_killed),
            (1, self._supervisor_frozen),
            (2, self._clogged),
            (2, self._outage),
            (2, self._one_sided_outage),
            (3, self._flaky),
            (2, self._slow_database),
            (2, self._lost_commits),
            (1, self._unreachable),
            (2, self._refusals),
            (2, self._cancel),
            (1, self._retry),
            (2, self._retry_blocked),
            (1, self._drain),
            (1, self._pause),
            (1, self._impostor),
            (2, self._disk_full),
            (1, self._disk_failed),
            (2, self._rot),
        ]
        # Each seed has its own mix: some see one kind again and again.
        self._weights = [weight * rng.choice((0, 1, 1, 6)) + 0.01 for weight, _ in self._kinds]

    async def happen(self, seconds: float) -> None:
        """Lets things go wrong for so long."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        pace = self._rng.choice((2.0, 5.0, 12.0))
        await self._run()
        while loop.time() < end:
            await asyncio.sleep(min(self._rng.expovariate(1 / pace), max(0.0, end - loop.time())))
            if len(self._world.judge.graphs) < 8 and self._rng.random() < 0.1:
                await self._run()
            (kind,) = self._rng.choices([kind for _, kind in self._kinds], self._weights)
            await kind()

    def _later(self, heal: Callable[[], object], most: float) -> None:
        """Heals after a while; calm heals everything anyway."""
        part = self._rng.choices((0.2, 0.5, 1.0, 4.0), (4, 4, 4, 2))[0]
        asyncio.get_running_loop().call_later(part * self._rng.uniform(0, most), heal)

    async def _run(self) -> None:
        if len(self._world.judge.graphs) < 8:
            self._world.meanwhile(self._world.create())

    async def _cut(self) -> None:
        if lines := self._world.lines:
            line = self._rng.choice(lines)
            self._world.judge.say(f"the line of {line.agent} to {line.replica} is cut")
            line.cut()

    async def _half_open(self) -> None:
        if lines := self._world.lines:
            line = self._rng.choice(lines)
            up, down = self._rng.choice(((True, True), (True, False), (False, True)))
            self._world.judge.say(f"the line of {line.agent} to {line.replica} loses {'up ' * up}{'down' * down}")
            line.lose(up=up, down=down)

    async def _slow_line(self) -> None:
        if lines := self._world.lines:
            line = self._rng.choice(lines)
            line.up.slow = line.down.slow = self._rng.uniform(0.1, 8.0)
            self._world.judge.say(f"the line of {line.agent} takes up to {line.up.slow:.1f} s")

    async def _replica_crash(self) -> None:
        replica = self._rng.choice(list(self._world.replicas.values()))
        await replica.crash()
        self._later(replica.start, 40)

    async def _agent_crash(self) -> None:
        machine = self._rng.choice(self._world.machines)
        await machine.crash()
        self._later(machine.boot, 60)

    async def _machine_lost(self) -> None:
        machine = self._rng.choice(self._world.machines)
        await machine.lose()
        self._later(machine.boot, 60)

    async def _power_cut(self) -> None:
        """All processes of a machine, and what its disk had not synced yet."""
        machine = self._rng.choice(self._world.machines)
        await machine.lose_power()
        self._later(machine.boot, 60)

    async def _long_away(self) -> None:
        """For longer than any lease, and rather where a deployment is under way."""
        deploying = [each for each in self._world.machines if each.deploys]
        machine = self._rng.choice(deploying or self._world.machines)
        if self._rng.random() < 0.5:
            await machine.crash()
            back: Callable[[], object] = machine.boot
        else:
            self._world.judge.say(f"{machine.name} is frozen for long")
            machine.process.freeze()
            back = machine.process.thaw
        asyncio.get_running_loop().call_later(self._rng.uniform(60, 300), back)

    async def _machine_gone(self) -> None:
        """A machine that never comes back; the last one is spared."""
        there = [each for each in self._world.machines if not each.gone]
        if len(there) > 1:
            machine = self._rng.choice(there)
            await machine.lose()
            machine.gone = True

    async def _frozen(self) -> None:
        machine = self._rng.choice(self._world.machines)
        self._world.judge.say(f"{machine.name} is frozen")
        machine.process.freeze()
        self._later(machine.process.thaw, 70)

    async def _replica_frozen(self) -> None:
        replica = self._rng.choice(list(self._world.replicas.values()))
        self._world.judge.say(f"{replica.name} is frozen")
        replica.process.freeze()
        self._later(replica.process.thaw, 70)

    async def _supervisor_killed(self) -> None:
        machine = self._rng.choice(self._world.machines)
        if machine.supervisors:
            machine.kill_supervisor(self._rng.choice(sorted(machine.supervisors)))

    async def _supervisor_frozen(self) -> None:
        """For less than the margin: what cannot act for longer cannot end anything in time."""
        machine = self._rng.choice(self._world.machines)
        if machine.supervisors:
            attempt = self._rng.choice(sorted(machine.supervisors))
            process = machine.supervisors[attempt].process
            self._world.judge.say(f"the supervisor of attempt {attempt} is frozen")
            process.freeze()
            asyncio.get_running_loop().call_later(self._rng.uniform(0, 12), process.thaw)

    async def _clogged(self) -> None:
        """Nothing gets through to some, though nothing is lost; they are let go one by one, in another order."""
        names = [*self._world.replicas, *self._world.dialers]
        clogged = self._rng.sample(names, self._rng.randint(1, len(names) - 1))
        self._world.judge.say(f"{', '.join(clogged)} are clogged")
        for name in clogged:
            self._world.clog.close(name)
        for name in self._rng.sample(clogged, len(clogged)):
            self._later(functools.partial(self._world.clog.open, name), 45)

    async def _outage(self) -> None:
        self._world.judge.say("the database is down")
        for replica in self._world.replicas.values():
            self._down(replica.name)
        self._later(lambda: self._up(*self._world.replicas), 60)

    async def _one_sided_outage(self) -> None:
        name = self._rng.choice(list(self._world.replicas))
        self._world.judge.say(f"{name} does not reach the database")
        self._down(name)
        self._later(lambda: self._up(name), 60)

    def _down(self, name: str) -> None:
        self._world.replicas[name].trouble.down = True

    def _up(self, *names: str) -> None:
        for name in names:
            self._world.replicas[name].trouble.down = False

    async def _flaky(self) -> None:
        trouble = self._rng.choice(list(self._world.replicas.values())).trouble
        trouble.fails, trouble.loses_answers = self._rng.choice(((0.1, 0.0), (0.0, 0.1), (0.2, 0.2)))
        self._later(lambda: vars(trouble).update(fails=0.0, loses_answers=0.0), 60)

    async def _slow_database(self) -> None:
        trouble = self._rng.choice(list(self._world.replicas.values())).trouble
        trouble.slow = self._rng.choice((0.3, 2.0, 6.0))
        self._later(lambda: setattr(trouble, "slow", 0.01), 60)

    async def _lost_commits(self) -> None:
        """A failover to a standby that was behind: what was committed since is gone, also what was acknowledged."""
        world = self._world
        kept = world.rows.copied()
        await asyncio.sleep(self._rng.choice((0.05, 1.0, 20.0)) * self._rng.random())
        world.judge.say("the database fails over, and has lost its last commits")
        world.judge.taken_back(world.rows, kept)
        world.rows.taken_back(kept)

    async def _unreachable(self) -> None:
        dialer = self._rng.choice(list(self._world.dialers.values()))
        dialer.unreachable.add(self._rng.choice(list(self._world.replicas)))
        self._later(dialer.unreachable.clear, 60)

    async def _refusals(self) -> None:
        machine = self._rng.choice(self._world.machines)
        machine.refuses = self._rng.choice((0.3, 1.0))
        self._later(lambda: setattr(machine, "refuses", 0.0), 30)

    async def _cancel(self) -> None:
        if (run_id := self._world.some_run()) is not None:
            self._world.meanwhile(self._world.cancel(run_id))

    async def _retry(self) -> None:
        if (run_id := self._world.some_run()) is not None:
            self._world.meanwhile(self._world.retry(run_id))

    async def _retry_blocked(self) -> None:
        self._world.meanwhile(self._world.retry_blocked())

    async def _drain(self) -> None:
        if agents := self._world.rows.agents:
            name = self._rng.choice(sorted(agents))
            self._set_drained(name, drained=True)
            self._later(lambda: self._set_drained(name, drained=False), 40)

    def _set_drained(self, name: str, *, drained: bool) -> None:
        self._world.judge.say(f"{name} is {'drained' if drained else 'let work again'}")
        self._world.rows.agents[name].drained = drained
        self._world.hear_agents()

    async def _pause(self) -> None:
        pool = self._world.rows.pools["default"]
        pool.paused = True
        self._later(lambda: setattr(pool, "paused", False), 30)

    async def _impostor(self) -> None:
        """An agent that speaks of attempts which are not its own: all that it lacks is their tokens."""
        replica = self._rng.choice(list(self._world.replicas.values()))
        living = sorted(self._world.rows.leases)
        if not (replica.up and living):
            return
        attempts = self._rng.sample(living, min(3, len(living)))
        self._world.judge.say(f"an impostor speaks of attempts {attempts}")
        rng = random.Random(self._rng.getrandbits(64))
        line = Line(rng, "impostor", replica.name, self._world.judge.say, self._world.clog)
        replica.take(line)
        await line.send(pb.SessionRequest(hello=self._false_hello(attempts)))
        for each in attempts:
            token = self._rng.randbytes(16)
            for what in (
                {"started": pb.Started()},
                {"ended": pb.Ended(state=common_pb2.ATTEMPT_STATE_PASSED)},
                {"ended": pb.Ended(state=common_pb2.ATTEMPT_STATE_FAILED)},
            ):
                report = pb.Report(id=self._rng.randbytes(8).hex(), attempt_id=each, token=token, **what)
                await line.send(pb.SessionRequest(reports=pb.Reports(reports=[report])))
            permit = pb.PermitRequest(attempt_id=each, token=token, nonce="mine")
            await line.send(pb.SessionRequest(permit_request=permit))
        self._later(line.cut, 20)

    def _false_hello(self, attempts: Sequence[int]) -> pb.Hello:
        held = [pb.HeldAttempt(attempt_id=each, token=self._rng.randbytes(16)) for each in attempts]
        return pb.Hello(instance_id="i", name="impostor", version="1", pool="default", slots=1, held=held)

    async def _disk_full(self) -> None:
        """Under the spools of a machine; it may be for longer than its supervisors wait."""
        machine = self._rng.choice(self._world.machines)
        self._world.judge.say(f"the disk of {machine.name} is full")
        full(machine.spools)
        self._later(machine.spools.heal, 60)

    async def _disk_failed(self) -> None:
        """It says once that it could not keep something, and then that all is well."""
        machine = self._rng.choice(self._world.machines)
        self._world.judge.say(f"the disk of {machine.name} fails")
        failing(machine.spools)
        self._later(machine.spools.heal, 5)
        if self._rng.random() < 0.3:  # and who believed it finds out
            await asyncio.sleep(self._rng.uniform(5, 15))
            await machine.lose_power()
            self._later(machine.boot, 60)

    async def _rot(self) -> None:
        """A byte of a spool is not what was written."""
        machine = self._rng.choice(self._world.machines)
        if machine.disk:
            attempt = self._rng.choice(sorted(machine.disk))
            if machine.spools.rot(machine.spool_of(attempt), self._rng):
                self._world.judge.say(f"a byte of the spool of attempt {attempt} rots")
                self._world.judge.logs.rots(attempt)
