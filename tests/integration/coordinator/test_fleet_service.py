"""What people ask of the fleet, over the real wire, beside an agent of the test's own."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import grpc
import pytest

from headrace.v1 import agent_pb2, agent_pb2_grpc, fleet_pb2, fleet_pb2_grpc
from tests.integration.coordinator.processes import Daemon, Metadata, bearer, coordinator, none_left, token

pytestmark = pytest.mark.timeout(120)


class Fleet:
    """FleetService as a person with a token sees it."""

    def __init__(self, channel: grpc.Channel, metadata: Metadata) -> None:
        self._stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
        self._metadata = metadata

    def agents(self) -> list[fleet_pb2.Agent]:
        return list(self._stub.ListAgents(fleet_pb2.ListAgentsRequest(), metadata=self._metadata, timeout=20).agents)

    def drain(self, agent: str, request: str, *, undo: bool = False) -> fleet_pb2.Agent:
        message = fleet_pb2.DrainAgentRequest(request_id=request, agent=agent, undo=undo)
        return self._stub.DrainAgent(message, metadata=self._metadata, timeout=20)

    def pause(self, pool: str, request: str, *, paused: bool = True) -> fleet_pb2.Pool:
        message = fleet_pb2.PausePoolRequest(request_id=request, pool=pool, paused=paused)
        return self._stub.PausePool(message, metadata=self._metadata, timeout=20)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = coordinator(tmp_path_factory.mktemp("fleet") / "c")
    daemon.start()
    yield daemon
    daemon.end()
    assert none_left(daemon.folder, 10) == []


@pytest.fixture
def channel(running: Daemon) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(running.facts["address"]) as found:
        yield found


@pytest.fixture
def fleet(running: Daemon, channel: grpc.Channel) -> Fleet:
    return Fleet(channel, bearer(token(running, "client")))


@contextlib.contextmanager
def connected(running: Daemon, channel: grpc.Channel, hello: agent_pb2.Hello) -> Iterator[None]:
    """An agent that says Hello and then nothing, welcomed."""
    said: queue.SimpleQueue[agent_pb2.SessionRequest | None] = queue.SimpleQueue()
    said.put(agent_pb2.SessionRequest(hello=hello))
    stub: Any = agent_pb2_grpc.AgentServiceStub(channel)
    stream = stub.Session(iter(said.get, None), metadata=bearer(token(running, "agent")))
    try:
        assert next(stream).HasField("welcome")
        yield
    finally:
        said.put(None)
        stream.cancel()


def a_hello(name: str, *sandboxes: agent_pb2.SandboxAbility) -> agent_pb2.Hello:
    version = metadata.version("headrace")
    return agent_pb2.Hello(
        instance_id=f"i-{name}", name=name, version=version, pool="default", slots=1, sandboxes=sandboxes
    )


def test_a_drain_that_arrives_again_after_it_was_undone_drains_nothing(
    running: Daemon, channel: grpc.Channel, fleet: Fleet
) -> None:
    """A retry of the first request, late on the wire, must not take an agent away that a person has given back."""
    with connected(running, channel, a_hello("drained")):
        assert fleet.drain("drained", "first-request").presence == fleet_pb2.AGENT_PRESENCE_DRAINING
        assert fleet.drain("drained", "second-request", undo=True).presence == fleet_pb2.AGENT_PRESENCE_CONNECTED
        assert fleet.drain("drained", "first-request").presence == fleet_pb2.AGENT_PRESENCE_CONNECTED
        assert fleet.drain("drained", "third-request").presence == fleet_pb2.AGENT_PRESENCE_DRAINING


def test_an_agent_that_no_longer_trusts_its_disk_is_shown_with_the_reason(
    running: Daemon, channel: grpc.Channel, fleet: Fleet
) -> None:
    """Whoever looks for a lost machine finds it, and what to do; no undone drain can heal a disk."""
    sentence = "the log on the agent's disk could not be synced: Input/output error; it takes no job until …"
    hello = a_hello("broken")
    hello.draining, hello.draining_sentence = True, sentence
    with connected(running, channel, hello):
        found = next(agent for agent in fleet.agents() if agent.name == "broken")
        assert (found.presence, found.sentence) == (fleet_pb2.AGENT_PRESENCE_QUARANTINED, sentence)
        assert fleet.drain("broken", "undo-request", undo=True).presence == fleet_pb2.AGENT_PRESENCE_QUARANTINED
    with connected(running, channel, a_hello("broken")):
        found = next(agent for agent in fleet.agents() if agent.name == "broken")
        assert (found.presence, found.sentence) == (fleet_pb2.AGENT_PRESENCE_CONNECTED, "")


def test_a_pause_that_arrives_again_after_the_pool_was_resumed_pauses_nothing(fleet: Fleet) -> None:
    """Or a pool stands still, and nobody has asked for it."""
    assert fleet.pause("default", "pause-request").paused
    assert not fleet.pause("default", "resume-request", paused=False).paused
    assert not fleet.pause("default", "pause-request").paused


def test_a_request_that_named_what_is_not_there_may_be_made_again(
    running: Daemon, channel: grpc.Channel, fleet: Fleet
) -> None:
    """It changed nothing, so it is not remembered: the same click works once the agent has come."""
    with pytest.raises(grpc.RpcError) as refused:
        fleet.drain("late", "early-request")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    with connected(running, channel, a_hello("late")):
        assert fleet.drain("late", "early-request").presence == fleet_pb2.AGENT_PRESENCE_DRAINING


def test_a_change_of_the_fleet_without_a_proper_request_id_is_refused(fleet: Fleet) -> None:
    """Two callers with an empty one would be one request, and the second would wonder why nothing happens."""
    for call in (lambda: fleet.drain("x", ""), lambda: fleet.pause("default", "short")):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "request id" in str(refused.value.details())


def test_an_agent_is_shown_with_the_sandboxes_that_it_has_said(
    running: Daemon, channel: grpc.Channel, fleet: Fleet
) -> None:
    """Whether the kernel limits memory and processes is what an operator asks before untrusted jobs come."""
    able = agent_pb2.SandboxAbility
    said = [
        able(kind="docker", networks=["full", "none"], hard_limits=True),
        able(kind="bubblewrap", networks=["none"], hard_limits=False),
        able(kind="host", why_not="it is not allowed here"),
    ]
    with connected(running, channel, a_hello("able", *said)):
        (shown,) = [each for each in fleet.agents() if each.name == "able"]
        assert list(shown.sandboxes) == said
