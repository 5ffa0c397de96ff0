"""AgentService: one stream a connected agent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, assert_never

from coordinator.api.agent_messages import MOST_SENTENCE, hello_of, nonce_of, report_of, response, sentence_of, welcome
from coordinator.api.errors import rpc, streamed
from coordinator.api.extensions import Extensions
from coordinator.core.versions import why_not_served
from coordinator.dispatch.dispatcher import Dispatch
from coordinator.dispatch.reception import Reception, TurnedAway
from coordinator.dispatch.session import SendAway, Session, SessionOver
from coordinator.errors import BadInput, NotServed, StoreDown, TooLate
from headrace.v1 import agent_pb2 as wire
from headrace.v1 import agent_pb2_grpc as stubs


class AgentService(stubs.AgentServiceServicer):
    """AgentService over gRPC."""

    def __init__(self, sessions: AgentSessions, extensions: Extensions) -> None:
        self._sessions = sessions
        self._extensions = extensions

    @streamed
    async def Session(  # noqa: N802 - the wire's name
        self, request: AsyncIterator[wire.SessionRequest], context: Any
    ) -> AsyncIterator[wire.SessionResponse]:
        """One session of one agent."""
        del context
        async with contextlib.aclosing(self._sessions.serve(request)) as responses:
            async for each in responses:
                yield each

    @rpc
    async def Extend(  # noqa: N802
        self, request: wire.ExtendRequest, context: Any
    ) -> wire.ExtendResponse:
        """Adds what a step wrote to the step's own run."""
        del context
        return await self._extensions.extend(request)


class AgentSessions:
    """Serves sessions over any pair of streams: gRPC in life, an in-memory wire in the simulation."""

    def __init__(self, dispatch: Dispatch, reception: Reception, *, version: str) -> None:
        """`version`: this coordinator's own, which decides what agents it can serve."""
        self._dispatch = dispatch
        self._reception = reception
        self._version = version

    async def serve(self, requests: AsyncIterator[wire.SessionRequest]) -> AsyncGenerator[wire.SessionResponse, None]:
        """One session, from Hello to its end. Raises CoordinatorError; `StoreDown` also when it was fenced."""
        hello = await _hello(requests)
        if why_not := why_not_served(hello.version, self._version):
            raise NotServed(why_not)
        try:
            with self._reception.hello(holds=bool(hello.held)):
                session, opened = await self._dispatch.open(hello_of(hello), hello.credit)
        except TurnedAway as away:
            yield response(SendAway(str(away), away.seconds))
            await _parted(requests)
            return
        try:
            yield welcome(opened, self._dispatch.timing)
            reader = asyncio.create_task(self._read(session, requests), name=f"session of {session.name}")
            try:
                while True:
                    for message in await session.next_messages():
                        yield response(message)
            except SessionOver as over:
                if reader.done() and not reader.cancelled() and (error := reader.exception()) is not None:
                    raise error from over
                if session.over != _LEFT:
                    raise StoreDown(str(over)) from over
            finally:
                reader.cancel()
                await asyncio.wait([reader])
        finally:
            await self._dispatch.close(session)

    async def _read(self, session: Session, requests: AsyncIterator[wire.SessionRequest]) -> None:
        """Takes what the agent says until it says no more. Its failure ends the session."""
        try:
            async for request in requests:
                await self._take(session, request)
        except BaseException as error:
            session.end(str(error) or type(error).__name__)
            raise
        session.end(_LEFT)

    async def _take(self, session: Session, request: wire.SessionRequest) -> None:
        match request.WhichOneof("message"):
            case "heartbeat":
                beat = request.heartbeat
                await self._dispatch.heartbeat(session, beat.sequence, beat.highest_assignment, beat.attempt_ids)
            case "credit":
                self._dispatch.grant(session, request.credit.slots)
            case "acknowledgements":
                _check_count("acknowledgements", len(request.acknowledgements.acknowledgements), _ACKNOWLEDGEMENTS_MOST)
                for each in request.acknowledgements.acknowledgements:
                    await self._dispatch.acknowledge(
                        session, each.number, accepted=each.accepted, sentence=sentence_of(each.sentence, 500)
                    )
            case "reports":
                _check_count("reports", len(request.reports.reports), _REPORTS_MOST)
                await self._dispatch.report(session, [report_of(each) for each in request.reports.reports])
            case "permit_request":
                ask = request.permit_request
                await self._dispatch.ask_permit(session, ask.attempt_id, ask.token, nonce_of(ask))
            case "draining":
                await self._dispatch.leave(session, sentence_of(request.draining.sentence, MOST_SENTENCE))
            case "hello":
                raise BadInput("Hello comes once, at the beginning of a session")
            case None:
                pass  # a message of a newer agent that this version does not know
            case other:
                assert_never(other)


async def _hello(requests: AsyncIterator[wire.SessionRequest]) -> wire.Hello:
    """The first message. Raises BadInput for another one, TooLate when none comes."""
    try:
        async with asyncio.timeout(_HELLO_S):
            first = await anext(requests, None)
    except TimeoutError as error:
        raise TooLate(f"no Hello came within {_HELLO_S:g} s") from error
    if first is None or first.WhichOneof("message") != "hello":
        raise BadInput("a session begins with Hello")
    return first.hello


async def _parted(requests: AsyncIterator[wire.SessionRequest]) -> None:
    """Waits until the agent has closed the stream: one that we end may be gone before it has read what we said."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PARTING_S):
            async for _ in requests:
                pass


def _check_count(what: str, count: int, most: int) -> None:
    """Refuses a message that would keep every other session waiting. Raises BadInput."""
    if count > most:
        raise BadInput(f"{count} {what} in one message: send at most {most}")


_LEFT = "the agent has left"
_HELLO_S = 10.0
_PARTING_S = 2.0
_REPORTS_MOST = 500
_ACKNOWLEDGEMENTS_MOST = 2_048
"""Twice the slots that an agent can have."""
