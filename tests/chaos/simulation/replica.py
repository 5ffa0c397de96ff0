"""A coordinator replica of the simulation: everything real but the database and the wire."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from agent.wire import WireClosed
from coordinator.api.agent_service import AgentSessions
from coordinator.api.log_service import LogService
from coordinator.core.bucket import Rate
from coordinator.core.states import Cause
from coordinator.dispatch.bells import LocalBells
from coordinator.dispatch.dispatcher import Dispatch, Timing
from coordinator.dispatch.port import Wake
from coordinator.dispatch.reaper import Reaper
from coordinator.dispatch.reception import Reception
from coordinator.errors import CoordinatorError, StoreDown
from coordinator.logs.bells import LogBells
from coordinator.logs.writer import LogWriter
from headrace.v1 import log_pb2
from tests.chaos.simulation.freezing import Process, within
from tests.chaos.simulation.judge import Judge
from tests.chaos.simulation.line import Clog, Line
from tests.harness.memory_logs import MemoryLogs
from tests.harness.memory_rows import Rows
from tests.harness.memory_runs import MemoryRuns, MemoryTerm
from tests.harness.memory_store import MemoryDispatch
from tests.harness.memory_transactions import Transactions
from tests.harness.virtual_time import VirtualLoop

T = TypeVar("T")
NO_READERS: Any = (None, None)
"""A log service without a reader and its limits: nobody tails here."""


class Trouble:
    """How bad a replica's way to the database is at present."""

    def __init__(self) -> None:
        self.down = False
        self.slow = 0.01
        self.fails = 0.0
        self.loses_answers = 0.0

    def calm(self) -> None:
        self.__init__()  # type: ignore[misc]  # all as at first


class _Unanswered(Exception):
    """The transaction has happened, and whoever asked is gone."""


class FaultyTransactions(Transactions):
    """Each call travels to the database, happens or not, and travels back, or not."""

    def __init__(self, replica: Replica) -> None:
        super().__init__()
        self._replica = replica

    async def run(self, body: Callable[[], T]) -> T:
        replica, rng, trouble = self._replica, self._replica.rng, self._replica.trouble
        life = replica.rows.life
        await replica.loop.sleep(rng.uniform(0.0002, trouble.slow))
        if trouble.down:
            await asyncio.sleep(rng.choice((0.01, 1.0, 5.0, 15.0)))
        if trouble.down or not replica.up or replica.rows.life != life or rng.random() < trouble.fails:
            raise StoreDown("the simulated database cannot be reached")
        result = body()
        name = body.__qualname__.split(".")[1]
        if name in ("heartbeat", "open_session"):
            replica.judge.listen(replica.rows)
        if name not in ("classes", "observe", "cancels", "drained", "heartbeat", "hold", "append"):
            replica.judge.look(replica.rows)
        await replica.loop.sleep(rng.uniform(0.0002, trouble.slow))
        if trouble.down or replica.rows.life != life or rng.random() < trouble.loses_answers:
            replica.judge.say(f"{replica.name} does not get the answer of {name}")
            raise StoreDown("the simulated database's answer was lost")
        return result


class Replica:
    """One coordinator process: what it knows dies with it."""

    def __init__(
        self,
        name: str,
        rows: Rows,
        *,
        rng: random.Random,
        judge: Judge,
        timing: Timing,
        tell: Callable[[str, Wake], None],
    ) -> None:
        self.name, self.rows, self.rng, self.judge = name, rows, rng, judge
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.trouble = Trouble()
        self.process = Process()
        self.up = False
        self.lines: list[Line] = []
        """Of sessions."""
        self.appends: list[Line] = []
        """Of logs."""
        self.mended = 0
        self._timing = timing
        self._tell = tell
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        if self.up:
            return
        self.judge.say(f"{self.name} starts")
        self.up = True
        self.process = Process()
        loop = asyncio.get_running_loop()
        transactions = FaultyTransactions(self)
        self.bells = LocalBells(lambda wake: self._tell(self.name, wake))
        store = MemoryDispatch(self.rows, self.bells, lambda: self.rng.randbytes(16), transactions)
        self.runs = MemoryRuns(self.rows, self.bells, transactions, long_lease_s=self._timing.long_lease)
        self.dispatch = dispatch = Dispatch(
            store,
            self.bells,
            timing=self._timing,
            clock=loop.time,
            make_session_id=self._uuid,
            replica=self._uuid(),
            measures=self,
        )
        term = MemoryTerm(self.rows, "reaper", loop.time, lease_s=30.0, make_id=self._uuid, transactions=transactions)
        self._reaper = Reaper(
            store,
            term,
            self.bells,
            timing=self._timing,
            clock=loop.time,
            fleet_is_fixed=False,
            queue_timeout_s=24 * 3600,
        )
        reception = Reception(Rate(200.0, 400.0), at_once=100, clock=loop.time, turned_away=lambda: None)
        self._sessions = AgentSessions(dispatch, reception, version="1")
        writer = LogWriter(MemoryLogs(self.rows, transactions, self.judge.look_at_logs), LogBells())
        self._logs = LogService(writer, *NO_READERS)
        self._tasks = [
            loop.create_task(self._guarded(part.run()), context=within(self.process))
            for part in (dispatch, self._reaper, writer)
        ]

    async def _guarded(self, loop: object) -> None:
        try:
            await loop  # type: ignore[misc]  # a coroutine
        except Exception as error:  # a loop that fails takes the coordinator with it: a defect
            self.judge.complain(f"{self.name} failed: {_first(error)!r}")

    async def crash(self) -> None:
        """kill -9: connections break, calls under way may or may not have reached the database."""
        if not self.up:
            return
        self.judge.say(f"{self.name} is killed")
        self.up = False
        self.process.thaw()
        self.mended += self._reaper.mended
        lines, self.lines, self.appends = [*self.lines, *self.appends], [], []
        ending = [*self._tasks, *(line.server for line in lines if line.server is not None)]
        for line in lines:
            line.cut()
        for task in ending:
            task.cancel()
        await asyncio.wait(ending)

    @property
    def mended_in_all(self) -> int:
        return self.mended + (self._reaper.mended if self.up else 0)

    def take(self, line: Line) -> None:
        """A new stream of an agent's session."""
        self._take(line, self.lines, self._session)

    def take_logs(self, line: Line) -> None:
        """A new stream of an agent's logs."""
        line.pings = True
        self._take(line, self.appends, self._append)

    def _take(self, line: Line, lines: list[Line], serve: Callable[[Line], Awaitable[None]]) -> None:
        def forget(_: object) -> None:
            if line in lines:
                lines.remove(line)

        lines.append(line)
        line.host = self.process
        line.server = asyncio.get_running_loop().create_task(self._serve(line, serve), context=within(self.process))
        line.server.add_done_callback(forget, context=within(None))  # also of one that took no step

    async def _serve(self, line: Line, serve: Callable[[Line], Awaitable[None]]) -> None:
        try:
            await serve(line)
            line.end(grpc.StatusCode.OK, "")
        except CoordinatorError as error:
            line.end(error.code, str(error))
        except Aborted as error:
            if error.code is grpc.StatusCode.INTERNAL:
                self.judge.complain(f"a call at {self.name} failed: {error.sentence}")
            line.end(error.code, error.sentence)
        except asyncio.CancelledError:
            line.end(grpc.StatusCode.CANCELLED, "the coordinator cancelled the call")
        except Exception as error:
            self.judge.complain(f"a call at {self.name} failed: {_first(error)!r}")
            line.end(grpc.StatusCode.INTERNAL, "a defect")

    async def _session(self, line: Line) -> None:
        async with contextlib.aclosing(self._sessions.serve(line.requests())) as responses:
            async for each in responses:
                line.answer(each)

    async def _append(self, line: Line) -> None:
        await self._logs.Append(line.requests(), Call(line, self))

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    # coordinator.dispatch.dispatcher.Measures

    def claimed(self, seconds: float) -> None: ...

    def returned(self) -> None: ...

    def ended(self, outcome: str, cause: Cause) -> None: ...


class Aborted(grpc.aio.AbortError):
    """A call ended with a status."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.sentence = code, sentence


class Call:
    """The context of an Append call."""

    def __init__(self, line: Line, replica: Replica) -> None:
        self._line, self._replica = line, replica

    async def write(self, message: log_pb2.AppendResponse) -> None:
        for each in message.durable:
            self._replica.judge.logs.acknowledged(each.attempt_id, each.sequence, self._replica.rows)
        self._line.answer(message)

    async def abort(self, code: grpc.StatusCode, details: str, _: object) -> None:
        raise Aborted(code, details)


class Dialer:
    """`agent.wire.Dialer`: to replicas by their names. `take`: what a replica does with the line."""

    def __init__(
        self,
        agent: str,
        replicas: dict[str, Replica],
        rng: random.Random,
        make_rng: Callable[[], random.Random],
        clog: Clog,
        take: Callable[[Replica, Line], None] = Replica.take,
        unreachable: set[str] | None = None,
    ) -> None:
        self._agent, self._replicas, self._clog, self._take = agent, replicas, clog, take
        self._rng, self._make_rng = rng, make_rng
        self.unreachable = set[str]() if unreachable is None else unreachable

    def for_logs(self) -> Dialer:
        """The same machine's way for its logs."""
        parts = self._agent, self._replicas, self._make_rng(), self._make_rng, self._clog
        return Dialer(*parts, Replica.take_logs, self.unreachable)

    async def dial(self, address: str) -> Line:
        await asyncio.sleep(self._rng.uniform(0.001, 0.1))
        replica = self._replicas[address]
        if address in self.unreachable or self._clog.holds(self._agent, address):
            await asyncio.sleep(5.0)
            raise WireClosed(grpc.StatusCode.UNAVAILABLE, f"nobody answers at {address}")
        if not replica.up:
            raise WireClosed(grpc.StatusCode.UNAVAILABLE, f"{address} refuses connections")
        line = Line(self._make_rng(), self._agent, address, replica.judge.say, self._clog)
        self._take(replica, line)
        return line


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
