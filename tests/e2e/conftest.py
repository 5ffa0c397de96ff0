"""Every end-to-end test has a scene of its own, and the machine is as it was when the test is over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.scene import Scene, make_scratch
from tests.harness.docker_engine import NoEngineError, engine
from tests.harness.leftovers import Leftovers
from tests.harness.sandbox_world import cannot


@pytest.fixture(autouse=True)
def leftovers(request) -> Iterator[Leftovers]:
    """Set up first, so it looks last: after every other fixture has ended."""
    watch = Leftovers.begin(make_scratch(request.node.name.removeprefix("test_")))
    yield watch
    found = watch.found()
    if keep := os.environ.get("KEEP_SCRATCH"):
        shutil.copytree(watch.scratch, Path(keep) / watch.scratch.name, symlinks=True, dirs_exist_ok=True)
    watch.clear()
    assert not found, "left over:\n" + "\n".join(found)


@pytest.fixture
def scene(leftovers) -> Iterator[Scene]:
    """A user's machine."""
    made = Scene(leftovers.scratch)
    yield made
    made.close()


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[str]:
    """The address of a Docker engine."""
    try:
        with engine() as url:
            yield url
    except NoEngineError as error:
        cannot(str(error))


@pytest.fixture
def with_docker(docker_engine, leftovers, scene) -> str:
    """The engine, known to the scene's agents and watched for leftovers."""
    leftovers.watch_engine(docker_engine)
    scene.more["DOCKER_HOST"] = docker_engine
    return str(docker_engine)
