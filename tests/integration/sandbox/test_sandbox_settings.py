"""What an operator sets reaches the sandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.sandbox.docker import Docker
from agent.sandboxes import Machine, find
from agent.settings import Settings
from headrace.pipeline.plan import Network, SandboxKind
from tests.harness.sandbox_world import BWRAP_AGENT, World

pytestmark = [pytest.mark.root, pytest.mark.docker]

AGENT = f"{BWRAP_AGENT}-set"
Find = Callable[..., Machine]


@pytest.fixture
async def machine(tmp_path: Path, engine_url: str) -> AsyncIterator[Find]:
    """What an agent with these settings finds on this machine."""
    made: list[Machine] = []

    def found(**settings: object) -> Machine:
        told = Settings(**settings)  # type: ignore[arg-type]
        made.append(find(told, AGENT, tmp_path / "state", {"DOCKER_HOST": engine_url}))
        return made[-1]

    yield found
    for each in made:
        docker = each.sandboxes[SandboxKind.DOCKER]
        assert isinstance(docker, Docker)
        await docker.close()


async def test_an_oci_runtime_that_the_engine_lacks_is_named_when_the_agent_starts(machine: Find) -> None:
    """A job that was to be held by gVisor must not run without it, nor fail one by one."""
    other = await machine(docker_runtime="no-such").sandboxes[SandboxKind.DOCKER].ability()
    assert (other.networks, other.why_not) == (
        frozenset(),
        "the Docker engine knows no runtime no-such: install it there, or change docker_runtime",
    )
    known = await machine(docker_runtime="runc").sandboxes[SandboxKind.DOCKER].ability()
    assert known.why_not == ""


async def test_jobs_get_their_addresses_where_the_operator_says(machine: Find, tmp_path: Path) -> None:
    """On a machine whose own network overlaps with ours, jobs would else reach nothing, or somebody else."""
    sandbox = machine(job_addresses="10.223.7.0/28").sandboxes[SandboxKind.BUBBLEWRAP]
    await sandbox.ability()
    world = World(sandbox, AGENT, tmp_path / "world")
    try:
        job = await world.start(Network.FULL)
        assert " 10.223.7.2/30 " in (await job.run("ip -4 -oneline address show eth0")).out
    finally:
        await world.close()
