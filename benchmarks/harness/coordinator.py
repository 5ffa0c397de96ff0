"""A real coordinator for one benchmark: one process, the embedded PostgreSQL with its own settings, fsync on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.processes import ChildFailed, child, plain_environment, scratch, tail_of

_START_S = 60.0
_UNLIMITED = {
    "HEADRACE_CHANGES_PER_S": "10000",
    "HEADRACE_CHANGES_BURST": "100000",
    "HEADRACE_PROJECT_CHANGES_PER_S": "10000",
    "HEADRACE_PROJECT_CHANGES_BURST": "100000",
    "HEADRACE_PROJECT_RUNS_MOST": "100000",
    "HEADRACE_PROJECT_JOBS_MOST": "10000000",
}
"""One project of one client makes here as many runs as hundreds would."""


@dataclass(frozen=True, slots=True)
class Coordinator:
    """A running coordinator: where it listens, and what opens its doors."""

    address: str
    http: str
    client_token: str
    agent_token: str
    pid: int
    data: Path


@contextlib.asynccontextmanager
async def coordinator() -> AsyncIterator[Coordinator]:
    """Its defaults, but for how often runs may be made; in a folder of its own, which is removed at the end."""
    with scratch("coordinator") as folder:
        data, log = folder / "data", folder / "log"
        reader, writer = os.pipe()
        argv = [sys.executable, "-m", "headrace", "coordinator", "--data-dir", str(data), "--ready-fd", str(writer)]
        for flag in ("--listen", "--http-listen", "--blob-listen"):
            argv += [flag, "127.0.0.1:0"]
        environment = plain_environment(HEADRACE_LOG_LEVEL="warning", **_UNLIMITED)
        with os.fdopen(reader, "rb") as ready:
            try:
                up = child(argv, log, env=environment, pass_fds=[writer])
                process = await up.__aenter__()
            finally:
                os.close(writer)
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_exit(up)
                line = await asyncio.wait_for(asyncio.to_thread(ready.readline), _START_S)
                if not line:
                    raise ChildFailed(f"the coordinator did not start:\n{tail_of(log)}")
                facts = json.loads(line)
                tokens = {name: (data / "tokens" / name).read_text().strip() for name in ("client", "agent")}
                try:
                    yield Coordinator(
                        facts["address"], facts["http"], tokens["client"], tokens["agent"], process.pid, data
                    )
                except Exception as error:
                    error.add_note(f"the coordinator said:\n{tail_of(log)}")
                    raise
