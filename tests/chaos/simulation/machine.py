"""A build machine of the simulation: a disk, supervisors that outlive the agent, and the agent's process.

The session, the connection and the outbox are the agent's own; what they call jobs are commands that take a random
time here, with the same records on disk as `agent/jobs.py` keeps.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from agent.connection import Connection, Ending
from agent.forwarder import Forwarder
from agent.session import Identity, Outbox
from agent.supervisor.damage import Damage
from agent.supervisor.deadline import Terms
from agent.wire import LogDialer, SessionDialer
from headrace.v1 import agent_pb2 as pb
from tests.chaos.simulation.freezing import Process, within
from tests.chaos.simulation.jobs import GRACE_MS, Record, SimulatedJobs
from tests.chaos.simulation.judge import Judge
from tests.chaos.simulation.spooling import SimulatedDisk, SimulatedLog, now_ms
from tests.chaos.simulation.supervisor import Supervisor
from tests.harness.memory_rows import Rows
from tests.harness.virtual_time import VirtualClock

LEASE_MS = 30_000


class Machine:
    """The machine and, while it runs, the agent's process on it."""

    def __init__(
        self,
        name: str,
        slots: int,
        *,
        dialer: SessionDialer,
        log_dialer: LogDialer,
        folder: Path,
        read: Callable[[], Rows],
        addresses: Sequence[str],
        rng: random.Random,
        judge: Judge,
        long_lease: float,
    ) -> None:
        self.name, self.slots = name, slots
        self.rng, self.judge = rng, judge
        self.disk: dict[int, Record] = {}
        self.supervisors: dict[int, Supervisor] = {}
        self.spools = SimulatedDisk()
        """The disk under the spools; the records of attempts are on one that never fails."""
        self._folder, self._read = folder, read
        self.canceled: set[int] = set()
        self.refuses = 0.0
        self.gone = False
        """For ever."""
        self.longest = rng.choice((60.0, 400.0))
        """Seconds that the commands of a deployment take at most."""
        self.process = Process()
        self.crashes = 0
        self._instance = self.new_id()
        self._generation = 0
        self._dialer, self._log_dialer, self._addresses = dialer, log_dialer, addresses
        self.long_lease_ms = round(long_lease * 1000)
        self.sent_ms = 0
        """When the last answered heartbeat was sent; what the agent's process knows."""
        self._agent: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        return self._agent is not None

    def new_id(self) -> str:
        return self.rng.randbytes(8).hex()

    def has_to_report(self, attempt_id: int) -> bool:
        record = self.disk.get(attempt_id)
        return record is not None and not record.nothing_to_report

    def spool_of(self, attempt_id: int) -> Path:
        return self._folder / str(attempt_id)

    def handed_in(self, attempt_id: int, rejected: str) -> None:
        """The agent has done with a log."""
        self.judge.logs.handed_in(attempt_id, rejected, self._read())

    def forget(self, attempt_id: int) -> None:
        """All of an attempt is gone from this machine."""
        self.disk.pop(attempt_id, None)
        if (supervisor := self.supervisors.pop(attempt_id, None)) is not None:
            supervisor.log.close()
        self.spools.forget(self.spool_of(attempt_id))

    def supervise(self, record: Record) -> bool:
        """Starts a supervisor. False: it does not come up, for its disk."""
        try:
            log = SimulatedLog(
                record.attempt_id, self.spool_of(record.attempt_id), self.spools, self.rng, self.judge.logs
            )
        except OSError as error:
            self.judge.say(f"the supervisor of attempt {record.attempt_id} does not start: {error}")
            return False
        longest = self.longest if record.at_most_once else 60.0
        self.supervisors[record.attempt_id] = supervisor = Supervisor(
            job_id=record.job_id,
            attempt_id=record.attempt_id,
            terms=Terms(
                self.long_lease_ms if record.at_most_once else LEASE_MS,
                record.at_most_once,
                GRACE_MS,
                heartbeat_sent=self.sent_ms or now_ms(),
                heard=now_ms(),
            ),
            nonce=self.new_id(),
            lasts=self.rng.choice(
                (0.05, self.rng.uniform(0.1, 5), self.rng.uniform(5, 60), self.rng.uniform(5, longest))
            ),
            outcome_by_itself=self.rng.choices(("passed", "failed", "errored", "timed_out"), (85, 8, 5, 2))[0],
            judge=self.judge,
            log=log,
        )
        supervisor.start()
        return True

    def boot(self) -> None:
        """Starts the agent's process; it finds its supervisors again."""
        if self._agent is None and not self.gone:
            self.judge.say(f"{self.name} starts")
            self.process = Process()
            body: Coroutine[Any, Any, None] = self._run()
            self._agent = asyncio.get_running_loop().create_task(body, context=within(self.process), name=self.name)

    async def crash(self) -> None:
        """kill -9 of the agent: its memory is gone, the disk and the supervisors are not."""
        if self._agent is not None:
            self.judge.say(f"{self.name} is killed")
            agent, self._agent = self._agent, None
            self.process.thaw()
            agent.cancel()
            await asyncio.wait([agent])

    async def lose_power(self) -> None:
        """Agent and supervisors are gone, and with them what was not synced: a record may be as it was at first."""
        await self.crash()
        self.judge.say(f"{self.name} loses power")
        self._kill_all()
        self.spools.power_cut(lambda unsynced: self.rng.randint(0, unsynced))
        for key, record in list(self.disk.items()):
            if self.rng.random() < 0.5 and not record.ended:
                self.disk[key] = Record(record.attempt_id, record.token, record.job_id, record.at_most_once)

    @property
    def deploys(self) -> bool:
        """Whether the commands of a deployment run here."""
        return any(each.terms.at_most_once and each.begun and not each.outcome for each in self.supervisors.values())

    def kill_supervisor(self, attempt_id: int) -> None:
        """kill -9 of a supervisor: its sandbox dies with it, and it is not adopted."""
        if (supervisor := self.supervisors.pop(attempt_id, None)) is not None:
            self.judge.say(f"the supervisor of attempt {attempt_id} on {self.name} is killed")
            supervisor.kill("errored")

    def _kill_all(self) -> None:
        for supervisor in self.supervisors.values():
            supervisor.kill("lost with its machine")
        self.supervisors.clear()

    async def lose(self) -> None:
        """The whole machine is gone; another one gets its name."""
        await self.crash()
        self.judge.say(f"{self.name} is lost with all that was on it")
        self._kill_all()
        for attempt_id in list(self.disk):
            self.forget(attempt_id)
        self._instance = self.new_id()

    async def _run(self) -> None:
        """As systemd runs it: an agent that was refused is started again."""
        while True:
            self._generation += 1
            self.sent_ms = 0
            outbox = Outbox()
            forwarder = Forwarder(self._log_dialer, self._addresses, rng=self.rng, heard=self)
            jobs = SimulatedJobs(self, outbox, forwarder)
            identity = Identity(self._instance, self.name, "1", "default", self.slots, sandboxes=(_ABILITY,))
            connection = Connection(
                self._dialer,
                self._addresses,
                identity,
                jobs,
                outbox,
                clock=VirtualClock(),
                rng=self.rng,
                listener=self,
                generation=self._generation,
            )
            try:
                ending = await connection.run(asyncio.Event())
                assert isinstance(ending, Ending)
                self.judge.say(f"{self.name} ends: {ending.sentence}")
            finally:
                if stopped := jobs.stop():
                    await asyncio.wait(stopped)
            await asyncio.sleep(self.rng.uniform(2, 8))

    # agent.forwarder.Heard

    def arrived(self, size: int) -> None: ...

    def damaged(self, attempt: int, damage: Damage) -> None:
        self.judge.say(f"{self.name} finds {damage.missing} bytes of attempt {attempt} damaged")

    # agent.connection.Listener

    def welcomed(self, address: str, session_id: str) -> None:
        self.judge.say(f"{self.name} has session {session_id[:8]} at {address}")

    def parted(self, address: str, sentence: str) -> None:
        self.judge.say(f"{self.name} parts from {address}: {sentence}")


_ABILITY = pb.SandboxAbility(kind="bubblewrap", networks=["full", "none"])
