"""Child processes of a benchmark: each ends with it, whatever ends it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop

ROOT = Path(__file__).resolve().parents[2]
_STOP_S = 30.0
_PR_SET_PDEATHSIG = 1


class ChildFailed(Exception):
    """A child did not do what it was started for; the message holds the end of what it said."""


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a benchmark. SIGTERM ends it as Ctrl-C does: everything that was made is removed first."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        uvloop.run(main())
    except KeyboardInterrupt:
        sys.exit(130)


@contextlib.contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A temporary folder, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix=f"hr-bench-{prefix}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.asynccontextmanager
async def child(
    argv: Sequence[str], log: Path, *, env: Mapping[str, str], pass_fds: Sequence[int] = (), cwd: Path = ROOT
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with pipes for input and output, its errors in `log`; asked to end, and killed if it does not."""
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=dict(env),
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            preexec_fn=_die_with_parent,
            limit=1 << 20,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), _STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()


async def line_of(process: asyncio.subprocess.Process, log: Path, seconds: float) -> str:
    """The next line that a child writes. Raises ChildFailed when it ends or says nothing in time."""
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), seconds)
    except TimeoutError as error:
        raise ChildFailed(f"nothing was said in {seconds:g} s:\n{tail_of(log)}") from error
    if not line:
        raise ChildFailed(f"it ended:\n{tail_of(log)}")
    return line.decode()


def tail_of(log: Path) -> str:
    """The end of a log file."""
    return log.read_text(errors="replace")[-4000:]


def plain_environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of Headrace, and what is given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return {**kept, **more}


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
