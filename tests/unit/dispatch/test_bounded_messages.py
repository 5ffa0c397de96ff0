"""What one message of an agent may hold."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from coordinator.api.agent_service import AgentSessions
from coordinator.core.bucket import Rate
from coordinator.dispatch.dispatcher import Timing
from coordinator.dispatch.reception import Reception
from coordinator.errors import BadInput
from headrace.v1 import agent_pb2 as pb
from tests.harness.virtual_time import simulate
from tests.unit.dispatch.test_dispatch import Replica

HELLO = pb.SessionRequest(
    hello=pb.Hello(name="a", instance_id="i" * 8, version="1", pool="default", slots=4, credit=4, number=1)
)
REPORT = pb.Report(id="12345678", attempt_id=1, token=b"t" * 16, started=pb.Started())


def reports(count: int) -> pb.SessionRequest:
    return pb.SessionRequest(reports=pb.Reports(reports=[REPORT] * count))


def acknowledgements(count: int) -> pb.SessionRequest:
    each = pb.Acknowledgement(number=1, attempt_id=1, token=b"t" * 16, accepted=True)
    return pb.SessionRequest(acknowledgements=pb.Acknowledgements(acknowledgements=[each] * count))


@pytest.mark.parametrize(
    ("message", "words"), [(reports(501), "501 reports"), (acknowledgements(2_049), "2049 acknowledgements")]
)
def test_a_message_that_would_keep_all_others_waiting_ends_its_own_session(
    message: pb.SessionRequest, words: str
) -> None:
    """Hundreds of thousands of tiny reports fit into one message, and stand before everybody's heartbeats."""

    async def main(rng: random.Random) -> None:
        async with Replica(Timing()).running() as replica:

            async def said() -> AsyncIterator[pb.SessionRequest]:
                yield HELLO
                yield message
                await asyncio.sleep(60)

            loop = asyncio.get_running_loop()
            reception = Reception(Rate(1.0, 1.0), at_once=1, clock=loop.time, turned_away=lambda: None)
            with pytest.raises(BadInput, match=words):
                async for _ in AgentSessions(replica.dispatch, reception, version="1").serve(said()):
                    pass

    simulate(main, 1)
