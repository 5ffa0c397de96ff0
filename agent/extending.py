"""Dynamic pipelines: what a step wrote to `$HEADRACE_PIPELINE` is handed to the coordinator, which judges it."""

from __future__ import annotations

from pathlib import Path

import grpc.aio

from agent.calls import CALL_S, Calls
from agent.environment import BadFile, Files
from agent.problems import JobProblem
from agent.record import Record
from agent.supervisor.client import SupervisorClient
from agent.workspace.tree import NotThere, TooMuch, Tree, TreeProblem
from headrace.v1 import agent_pb2, agent_pb2_grpc

_REFUSED = "what it wrote to $HEADRACE_PIPELINE was refused; the log says why"
LIMIT = 1 << 20
"""Bytes of a fragment, as of every pipeline file."""


def read_fragment(folder: Path, files: Files) -> bytes:
    """What the step wrote; empty: nothing. Blocks. Raises `BadFile`."""
    try:
        with Tree.open(folder) as tree:
            return tree.read(files.pipeline, LIMIT)
    except NotThere:
        return b""
    except TooMuch as error:
        raise BadFile(f"What the step wrote to $HEADRACE_PIPELINE is more than {LIMIT:,} bytes: {error}") from error
    except TreeProblem as error:
        raise BadFile(f"What the step wrote to $HEADRACE_PIPELINE cannot be read: {error}") from error


async def extend_run(record: Record, calls: Calls, client: SupervisorClient, step: int, text: bytes) -> str:
    """Adds a fragment to the run, and says in the log what came of it. Returns the first problem; empty: none.

    May be repeated, also by an agent that was started again: the same bytes add nothing. Raises `JobProblem`.
    """
    request = agent_pb2.ExtendRequest(attempt_id=record.attempt, token=record.token, step=step, text=text)

    async def ask(channel: grpc.aio.Channel) -> agent_pb2.ExtendResponse:
        stub: agent_pb2_grpc.AgentServiceAsyncStub = agent_pb2_grpc.AgentServiceStub(channel)
        return await stub.Extend(request, metadata=calls.metadata(), timeout=CALL_S)

    await client.open_section("step", "Extend the run")
    sentence = "it was not done"
    try:
        answer = await calls.call(ask, "the run cannot be extended")
        lines = answer.problems or [_added(answer)]
        await client.say("".join(f"headrace: {line}\n" for line in lines))
        sentence = (await client.masked([answer.problems[0]]))[0] or _REFUSED if answer.problems else ""
    except JobProblem as problem:
        sentence = problem.sentence
        await client.say(f"headrace: {sentence}\n")
        raise
    finally:
        await client.close_section(sentence)
    return sentence


def _added(answer: agent_pb2.ExtendResponse) -> str:
    what = "1 job" if answer.added == 1 else f"{answer.added} jobs"
    was = "was" if answer.added == 1 else "were"
    return f"{what} {was} added to the run" + (" before, by the same text" if answer.existed else "")
