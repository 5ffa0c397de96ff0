"""The images, built once a session."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.harness import images
from tests.harness.docker_engine import NoEngineError, engine
from tests.integration.deploy.world import BASE_PACKAGES, Fleet, Images, fleet, wheels


def cannot(why: str) -> None:
    """Under CI nothing is skipped in silence."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """Both images on Debian's smallest system, from a folder of wheels, without network."""
    if os.geteuid() != 0:
        cannot("the base image needs root")
    with contextlib.ExitStack() as up:
        try:
            url = up.enter_context(engine())
        except NoEngineError as error:
            cannot(str(error))
        client = up.enter_context(contextlib.closing(docker.DockerClient(base_url=url, version="auto", timeout=300)))
        found = Images(client, images.debian(url, BASE_PACKAGES))
        up.callback(found.remove)
        wheelhouse = wheels(tmp_path_factory.mktemp("wheels"))
        found.coordinator = found.build("coordinator", wheelhouse)
        found.agent = found.build("agent", wheelhouse)
        yield found


@pytest.fixture
def containers(built: Images, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet in containers, of the test's own."""
    with fleet(built, tmp_path) as found:
        yield found
