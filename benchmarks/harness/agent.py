"""A real agent for one benchmark: its supervisors, its sandboxes, one slot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator

from benchmarks.harness.coordinator import Coordinator
from benchmarks.harness.processes import ChildFailed, child, plain_environment, scratch, tail_of

_START_S = 60.0


@contextlib.asynccontextmanager
async def agent(of: Coordinator, *, docker_host: str) -> AsyncIterator[None]:
    """Connected and tried out; drained, and everything of it removed, at the end."""
    with scratch("agent") as folder:
        log = folder / "log"
        reader, writer = os.pipe()
        argv = [sys.executable, "-m", "headrace", "agent", "--name=bench", "--slots=1", f"--url={of.address}"]
        argv += [f"--data-dir={folder / 'data'}", f"--ready-fd={writer}"]
        environment = plain_environment(
            HEADRACE_TOKEN=of.agent_token, HEADRACE_LOG_LEVEL="warning", DOCKER_HOST=docker_host
        )
        with os.fdopen(reader, "rb") as ready:
            try:
                up = child(argv, log, env=environment, pass_fds=[writer])
                await up.__aenter__()
            finally:
                os.close(writer)
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_exit(up)
                if not await asyncio.wait_for(asyncio.to_thread(ready.readline), _START_S):
                    raise ChildFailed(f"the agent did not start:\n{tail_of(log)}")
                try:
                    yield
                except Exception as error:
                    error.add_note(f"the agent said:\n{tail_of(log)}")
                    raise
