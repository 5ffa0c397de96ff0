"""Real sandboxes, of both kinds, started as a supervisor starts them."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.sandbox import entry
from agent.sandbox.docker import Docker
from agent.sandbox.firewall import Firewall
from headrace.pipeline.plan import SandboxKind
from tests.harness import images
from tests.harness.docker_engine import NoEngineError, engine
from tests.harness.outside import outside as machine_outside
from tests.harness.sandbox_world import BWRAP_AGENT, DOCKER_AGENT, SLOT, World, bubblewrap, cannot, cgroups, resolvers


@pytest.fixture(autouse=True)
def _as_root(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("root") and os.geteuid() != 0:
        cannot("this test needs root")


@pytest.fixture(scope="session")
def engine_url() -> Iterator[str]:
    """The address of a running Docker engine."""
    try:
        running = engine()
        url = running.__enter__()
    except NoEngineError as error:
        cannot(str(error))
    try:
        yield url
    finally:
        running.__exit__(None, None, None)


@pytest.fixture(scope="session")
def debian_image(engine_url: str) -> str:
    """Debian with a Python."""
    return images.debian(engine_url, "python3")


@pytest.fixture(scope="session")
def busybox_image(engine_url: str) -> str:
    """Two megabytes of busybox."""
    return images.busybox(engine_url)


@pytest.fixture(scope="session")
def static_busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unreadable copy that serves as control shell."""
    original = shutil.which("busybox")
    if original is None:
        cannot("busybox cannot be found: apt-get install busybox-static")
        raise AssertionError
    return entry.copy_busybox(Path(original), tmp_path_factory.mktemp("shell"))


@pytest.fixture
async def bubblewrap_world(tmp_path: Path) -> AsyncIterator[World]:
    """bubblewrap with the machine's own sh as control shell."""
    world = World(bubblewrap(tmp_path / "state", BWRAP_AGENT), BWRAP_AGENT, tmp_path / "bubblewrap")
    yield world
    await world.close()


@pytest.fixture
async def docker_world(tmp_path: Path, engine_url: str, debian_image: str) -> AsyncIterator[World]:
    """Docker with the image's own sh as control shell."""
    agent = DOCKER_AGENT
    docker = Docker(
        agent=agent,
        slot=SLOT,
        env={},
        firewall=Firewall(agent, SandboxKind.DOCKER),
        cgroups=cgroups(agent),
        resolvers=resolvers(),
        url=engine_url,
    )
    assert not (await docker.ability()).why_not
    world = World(docker, agent, tmp_path / "docker", image=debian_image)
    yield world
    await world.close()
    await docker.close()


@pytest.fixture(params=[SandboxKind.BUBBLEWRAP, SandboxKind.DOCKER])
def world(request: pytest.FixtureRequest) -> World:
    """Both, one after the other."""
    found: World = request.getfixturevalue(f"{request.param}_world")
    return found


@pytest.fixture
def outside() -> Iterator[str]:
    """The address of a machine elsewhere that listens on port 80, also as the cloud's metadata."""
    with machine_outside() as address:
        yield address
