"""The agent's side of a supervisor: starts it, finds it again, asks it.

    client = await SupervisorClient.find(folder) or await SupervisorClient.start(folder, attempt, settings=settings)
    await client.launch(prepared.launch, cgroups=prepared.cgroups)
    result = await client.step(Step(...))
    ended = await client.end()

Every operation may be repeated, also by an agent that was started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import zstandard

from agent.problems import Cause, JobProblem
from agent.sandbox.protocol import Launch, Spawn
from agent.supervisor.channels import NAMES
from agent.supervisor.protocol import MAJOR, MINOR, BadMessage, Decoder, Message, encode, spoken
from agent.supervisor.results import Ended, Step, StepResult, SupervisorSettings, SupervisorState

_START_S: Final = 10.0
_PING_S: Final = 10.0
_LOOK_S: Final = 0.02
_READ: Final = 1 << 18
_ROOT: Final = Path(__file__).resolve().parents[2]
_SITE: Final = Path(zstandard.__file__).resolve().parents[1]


class SupervisorGone(Exception):
    """The supervisor does not answer any more: it has died, and its sandbox with it."""


class SupervisorClient:
    """One supervisor. Made by `start` and `find` alone; `close` only ends the connection."""

    def __init__(self, folder: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pid: int) -> None:
        self.folder = folder
        self.pid = pid
        """The supervisor's own process."""
        self.kill_refused = asyncio.Event()
        """Set when the supervisor wants the sandbox dead and may not kill it: then the engine has to."""
        self.disk_failed: Callable[[str], None] = lambda _: None
        """Called with a sentence when the disk under the spool has failed."""
        self._reader = reader
        self._writer = writer
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._sequence = 0
        self._news = asyncio.Event()
        self._gone = False
        self._tasks = [
            asyncio.create_task(self._listen(), name=f"supervisor {pid} answers"),
            asyncio.create_task(self._ping(), name=f"supervisor {pid} ping"),
        ]

    @classmethod
    async def start(cls, folder: Path, attempt: int, *, settings: SupervisorSettings) -> SupervisorClient:
        """Starts the supervisor of `attempt` in `folder` (A of the protocol), which it makes if need be; or takes the
        one that an agent was about to start when it died.

        Raises:
            JobProblem: ERRORED, with what the supervisor said, when it does not come up.
            TimeoutError: one that was being started does not come up, and does not die.

        """
        private = _private(folder)
        spool = settings.spool or private
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = private / "log"
        with log.open("ab") as errors:
            if (begun := await cls._begun_by_another(folder, errors)) is not None:
                return begun
            _clear(folder)
            started = await _started(_argv(folder, attempt, spool, settings), errors)
        if not started:
            text = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise JobProblem(Cause.ERRORED, f"the supervisor did not start: {' '.join(text) or 'it said nothing'}")
        found = await cls.find(folder)
        if found is None:
            raise JobProblem(Cause.ERRORED, "the supervisor died as soon as it was started")
        return found

    @classmethod
    async def _begun_by_another(cls, folder: Path, errors: BinaryIO) -> SupervisorClient | None:
        """The supervisor that an agent started before it was killed, once it answers. None: there is none, and the lock
        is ours. It is a lock on the file that each supervisor has for its standard error: it is theirs from before they
        are there until they are gone.
        """
        async with asyncio.timeout(_START_S):
            while not _locked(errors):
                if (found := await cls.find(folder)) is not None:
                    return found
                await asyncio.sleep(_LOOK_S)
        return None

    @classmethod
    async def find(cls, folder: Path) -> SupervisorClient | None:
        """The living supervisor of `folder`, or None.

        Raises:
            TimeoutError: there is one and it does not answer (it was stopped, say).
            SupervisorGone: it speaks a version that this agent does not.

        """
        try:
            place = os.open(folder / "priv", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            path = f"/proc/self/fd/{place}/sock"  # any folder fits into a socket's name that way
            reader, writer = await asyncio.open_unix_connection(path, limit=_READ)
        except (FileNotFoundError, ConnectionError):
            return None
        finally:
            os.close(place)
        try:
            async with asyncio.timeout(_START_S):
                first = await _first(reader)
        except (OSError, BadMessage, asyncio.IncompleteReadError):
            writer.close()
            return None
        except BaseException:
            writer.close()
            raise
        if not spoken(first.get("headrace")):
            writer.close()
            theirs, ours = first.get("headrace"), f"{MAJOR}.{MINOR}"
            raise SupervisorGone(f"the supervisor of {folder} speaks version {theirs}, and this agent {ours}")
        return cls(folder, reader, writer, int(first["pid"]))

    async def state(self) -> SupervisorState:
        """All that it knows."""
        return SupervisorState.of(await self._ask("state"))

    async def note(self, key: str, value: str) -> None:
        """Keeps a small fact over the agent's own restart; see `SupervisorState.notes`."""
        await self._ask("note", key=key, value=value)

    async def open_section(self, kind: str, title: str) -> int:
        """Opens a section of our own and returns its number; one that is open is closed."""
        return int((await self._ask("open", kind=kind, title=title))["section"])

    async def say(self, text: str) -> None:
        """The agent's own lines into the open section; masked."""
        await self._ask("say", text=text)

    async def close_section(self, result: str) -> None:
        """Closes the open section; `result` empty: all went well."""
        await self._ask("close", result=result)

    async def secrets(self, values: Sequence[bytes]) -> None:
        """From now on these are masked as well."""
        await self._ask("secrets", values=[value.hex() for value in values])

    async def masked(self, texts: Sequence[str]) -> list[str]:
        """The texts as they may be shown outside of the log. An older supervisor does not know how: they are empty."""
        try:
            return [str(text) for text in (await self._ask("masked", texts=list(texts)))["texts"]]
        except JobProblem:
            return [""] * len(texts)

    async def tail(self) -> str:
        """The end of the newest step's log, masked: at most 1 MiB. Raises `JobProblem` if it is too old to know."""
        return str((await self._ask("tail"))["text"])

    async def launch(self, launch: Launch, *, cgroups: Sequence[Path] = ()) -> None:
        """Starts the sandbox, or takes over the engine's; returns once its control shell waits for steps.

        `cgroups`: the folders whose files tell an out-of-memory kill.

        Raises:
            JobProblem: ERRORED, when it does not start within 10 s.

        """
        watched = [str(folder) for folder in cgroups]
        if isinstance(launch, Spawn):
            await self._ask(
                "launch",
                argv=list(launch.argv),
                env=dict(launch.env),
                pass_files=dict(launch.pass_files),
                cgroups=[str(folder) for folder in launch.cgroups],
                watched=watched,
            )
        else:
            await self._ask("launch", pid=launch.pid, container=launch.container, watched=watched)

    async def launched(self) -> None:
        """Waits for a sandbox that an earlier agent has launched. Raises JobProblem as `launch` does."""
        await self._ask("launch")

    async def step(self, step: Step) -> StepResult:
        """Runs a step to its end. Asked again under its number: the result of the same one, never a second run."""
        return StepResult.of(await self._ask("step", **step.asked()))

    async def cancel(self, grace_ms: int, cause: Cause = Cause.CANCELED) -> None:
        """TERM to all but pid 1, KILL after the grace; a second cancel kills everything."""
        await self._ask("cancel", grace_ms=grace_ms, cause=cause)

    async def kill(self, cause: Cause = Cause.CANCELED, sentence: str = "the sandbox was killed") -> None:
        """The sandbox, at once."""
        await self._ask("kill", cause=cause, sentence=sentence)

    async def extend(self, lease_ms: int, *, deadline_boot_ms: int | None = None, grace_ms: int | None = None) -> None:
        """New terms: the lease, the job's own end by the boot clock (0: none), the grace that the end is given."""
        wanted = {"deadline": deadline_boot_ms, "grace_ms": grace_ms}
        await self._ask("extend", lease_ms=lease_ms, **{k: v for k, v in wanted.items() if v is not None})

    async def heartbeat_answered(self, sent_boottime_ms: int) -> None:
        """A heartbeat that was sent then, by the boot clock, has been answered."""
        await self._ask("heartbeat", sent=sent_boottime_ms)

    async def end(self) -> Ended:
        """Ends the sandbox and the log; returns when the last record is durable in the spool, or cannot be kept."""
        return Ended.of(await self._ask("end"))

    async def leave(self) -> None:
        """The supervisor leaves; the spool stays. Only after `end`."""
        with contextlib.suppress(SupervisorGone):
            await self._ask("leave")
        await self._left()

    async def acknowledge(self, sequence: int) -> None:
        """Everything up to this record is stored elsewhere: frees its room."""
        await self._ask("ack", sequence=sequence)

    async def permit_nonce(self) -> str:
        """The supervisor's random number for the start permit: in its memory alone, the same as long as it lives."""
        return str((await self._ask("permit"))["nonce"])

    async def spooled(self) -> AsyncIterator[int]:
        """The newest durable record's number, each time that there are more; ends when the supervisor is gone."""
        told = 0
        while True:
            if self._sequence > told:
                told = self._sequence
                yield told
                continue
            if self._gone:
                return
            self._news.clear()
            await self._news.wait()

    async def close(self) -> None:
        """Ends the connection. The supervisor goes on."""
        self._writer.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._lost()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _left(self) -> None:
        """Waits for the supervisor's process: its end of the connection is closed last."""
        await asyncio.wait(self._tasks[:1])
        await self.close()

    async def _ask(self, op: str, **fields: Any) -> dict[str, Any]:
        if self._gone:
            raise SupervisorGone(f"the supervisor of {self.folder} is gone")
        self._number += 1
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        number = self._number
        self._asked[number] = future
        try:
            self._writer.write(encode({"id": number, "op": op, **fields}))
            with contextlib.suppress(ConnectionError):  # the listener tells
                await self._writer.drain()
            return await future
        finally:
            self._asked.pop(number, None)

    async def _listen(self) -> None:
        decoder = Decoder()
        try:
            while data := await self._reader.read(_READ):
                for message in decoder.feed(data):
                    self._heard(message)
        except (OSError, BadMessage):
            pass
        finally:
            self._lost()

    def _heard(self, message: Message) -> None:
        if "spooled" in message:
            self._sequence = int(message["spooled"])
            self._news.set()
            return
        if "kill_refused" in message:
            self.kill_refused.set()
            return
        if "disk_failed" in message:
            self.disk_failed(str(message["disk_failed"]))
            return
        future = self._asked.get(message.get("id", 0))
        if future is None or future.done():
            return
        if "error" in message:
            future.set_exception(JobProblem(Cause(message.get("cause") or Cause.ERRORED), message["error"]))
        else:
            future.set_result(message["answer"])

    def _lost(self) -> None:
        self._gone = True
        self._news.set()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(SupervisorGone(f"the supervisor of {self.folder} is gone"))

    async def _ping(self) -> None:
        """An agent that is frozen sends none, and counts as gone."""
        with contextlib.suppress(SupervisorGone, JobProblem):
            while True:
                await asyncio.sleep(_PING_S)
                await self._ask("ping")


def _private(folder: Path) -> Path:
    """Makes `folder`, closed to every other user, and its `priv`; returns that. A sandbox gets `io` as a mount."""
    private = folder / "priv"
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)  # steps' scripts and environments lie in it, and FIFOs that anybody may write to
    return private


def _argv(folder: Path, attempt: int, spool: Path, settings: SupervisorSettings) -> list[str]:
    main = Path(__file__).with_name("main.py")
    asked = json.dumps({"folder": str(folder), "spool": str(spool), "attempt": attempt, **settings.asked()})
    return [sys.executable, "-I", "-S", str(main), str(_ROOT), str(_SITE), asked]


def _locked(errors: BinaryIO) -> bool:
    try:
        fcntl.flock(errors, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clear(folder: Path) -> None:
    """Takes away what a supervisor left that died before anything was launched."""
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)
        (folder / "io" / name).unlink(missing_ok=True)
    (folder / "priv" / "sock").unlink(missing_ok=True)


async def _started(argv: list[str], errors: BinaryIO) -> bool:
    """Starts it in a session of its own and waits for its word. The process that is started forks and leaves, so that
    the supervisor is no child of the agent: nothing is left to collect, whichever of them ends first.
    """
    # No pipe: uvloop closes the number of one a second time, when it may be a file of another thread's by now.
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *argv,
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd="/",
                env={},
            )
        await process.wait()
        async with asyncio.timeout(_START_S):
            return bool(await reader.read(5))
    except TimeoutError:
        return False
    finally:
        writer.close()


async def _first(reader: asyncio.StreamReader) -> Message:
    length = await reader.readexactly(4)
    messages = Decoder().feed(length + await reader.readexactly(int.from_bytes(length, "little")))
    return messages[0]
