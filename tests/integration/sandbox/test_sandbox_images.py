"""What an image says of itself decides nothing: it is as hostile as the job."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from agent.sandbox.docker import Docker
from agent.sandbox.firewall import Firewall
from headrace.pipeline.plan import SandboxKind
from tests.harness import images
from tests.harness.sandbox_world import DOCKER_AGENT, SLOT, World, bubblewrap, resolvers

pytestmark = [pytest.mark.root, pytest.mark.docker]


@pytest.fixture
def hostile_image(engine_url: str, busybox_image: str) -> str:
    """An image that tries everything its metadata lets it try."""
    return images.variant(
        engine_url,
        "headrace-test/hostile:latest",
        busybox_image,
        {
            "ENV": "BASH_ENV=/evil ENV=/evil LD_PRELOAD=/evil.so KEPT=from-image",
            "ENTRYPOINT": '["/bin/false"]',
            "HEALTHCHECK": '--interval=1s CMD ["/bin/touch", "/tmp/healthy"]',
            "VOLUME": '["/data", "/workspace", "/hr"]',
            "USER": "12345",
            "WORKDIR": "/nowhere",
            "STOPSIGNAL": "SIGUSR1",
        },
    )


@pytest.fixture
async def guarded_docker(docker_world: World, static_busybox: Path, engine_url: str) -> AsyncIterator[World]:
    """Docker with our own busybox as control shell."""
    agent = f"{DOCKER_AGENT}-guarded"
    sandbox = Docker(
        agent=agent,
        slot=SLOT,
        env={},
        firewall=Firewall(agent, SandboxKind.DOCKER),
        resolvers=resolvers(),
        url=engine_url,
        busybox=static_busybox,
    )
    world = replace(docker_world, sandbox=sandbox, agent=agent, folder=docker_world.folder / "guarded", jobs=[])
    yield world
    await world.close()
    await sandbox.close()


@pytest.fixture
async def guarded_bubblewrap(bubblewrap_world: World, static_busybox: Path) -> World:
    """bubblewrap with the same."""
    sandbox = bubblewrap(bubblewrap_world.folder / "s", bubblewrap_world.agent, busybox=static_busybox)
    return replace(bubblewrap_world, sandbox=sandbox, jobs=bubblewrap_world.jobs)


async def test_hostile_metadata_has_no_effect(docker_world: World, hostile_image: str) -> None:
    """Control shell without the image's variables, our entry, no health check, our user, the job's workspace."""
    job = await docker_world.start(image=hostile_image)
    ran = await job.run("id -u; pwd; echo x > /data/x; echo y > /workspace/y; ls /hr/control")
    assert (ran.out.split(), ran.code) == (["0", "/workspace", "/hr/control"], 0)
    control = Path(f"/proc/{job.pid}/environ").read_bytes()
    for name in (b"BASH_ENV", b"LD_PRELOAD", b"ENV=", b"KEPT"):
        assert name not in control
    assert (job.folder.parent / "w" / "y").exists()


async def test_the_images_environment_is_the_steps(docker_world: World, hostile_image: str) -> None:
    """What the image sets for its programs belongs to the steps, and is given by us."""
    job = await docker_world.start(image=hostile_image)
    assert job.prepared.env["KEPT"] == "from-image"
    assert job.prepared.env["PATH"]


async def test_the_engine_shows_the_container_as_it_was_asked_for(
    docker_world: World, hostile_image: str, engine_url: str
) -> None:
    """As the engine has it: no health check, no volume, no log, no capability, the labels."""
    job = await docker_world.start(image=hostile_image)
    client = docker.APIClient(base_url=engine_url, version="auto")
    try:
        (listed,) = client.containers(filters={"label": f"headrace.agent={DOCKER_AGENT}"})
        shown = client.inspect_container(listed["Id"])
    finally:
        client.close()
    assert shown["State"]["Pid"] == job.pid
    assert shown["State"].get("Health") is None
    assert shown["Config"]["Labels"]["headrace.attempt"] == "101"
    assert shown["HostConfig"]["LogConfig"]["Type"] == "none"
    assert shown["HostConfig"]["CapAdd"] in (None, [])
    assert {mount["Type"] for mount in shown["Mounts"]} == {"bind"}
    assert shown["Image"].startswith("sha256:")


async def test_a_trusted_job_has_what_root_in_an_image_needs_and_no_more(docker_world: World) -> None:
    """chown and foreign folders work, which unpacking and installing needs; mounting does not."""
    job = await docker_world.start(trusted=True)
    assert (await job.run("touch x; chown 1000:1000 x; mkdir -m 700 d; chown 12:12 d; ls d; rm -rf d")).code == 0
    assert (await job.run("mount -t tmpfs none /tmp")).code != 0
    ran = await job.run("grep CapEff /proc/self/status")
    assert ran.out.split()[1] == "00000000000000fb"
    stranger = await docker_world.start()
    assert (await stranger.run("touch x; chown 1000:1000 x")).code != 0


@pytest.fixture(params=[SandboxKind.BUBBLEWRAP, SandboxKind.DOCKER])
def with_own_shell(request: pytest.FixtureRequest) -> World:
    """Both, one after the other."""
    found: World = request.getfixturevalue(f"guarded_{request.param}")
    return found


async def test_our_own_control_shell_cannot_be_reached_by_the_job(with_own_shell: World) -> None:
    """Unreadable, so pid 1 is not dumpable: its descriptors, memory and environment are closed to the job."""
    job = await with_own_shell.start()
    for file in ("fd/3", "fd/5", "mem", "environ"):
        assert (await job.run(f"exec 9</proc/1/{file}")).code != 0, file
    assert (await job.run("cat /.headrace/busybox")).code != 0
    assert (await job.run("chmod 755 /.headrace/busybox")).code != 0
    assert (await job.run("echo fine > /dev/stdout")).out == "fine\n"
