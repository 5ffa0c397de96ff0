"""The agent's calls of the blob service."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest

from agent import calls
from agent.blobs import Blobs
from agent.calls import Calls
from agent.wire import Access


async def test_a_coordinator_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long its upgrade takes, it costs no job its artifacts: a stop or the job's own time ends the wait."""
    monkeypatch.setattr(calls, "_PATIENCE_S", -1.0)
    with socket.socket() as nobody:  # bound and not listening: every call is refused
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        reach = Calls(lambda _: Access("token", secure=False, roots=None), [address], random.Random(1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await Blobs(reach).for_attempt(1, b"t").fetch_bundle()
