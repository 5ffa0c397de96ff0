"""Services on a real engine: what they reach, what they may, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import Iterator, Mapping

import docker
import pytest

from agent.sandbox import service
from agent.sandbox.docker import Docker
from agent.sandbox.docker_services import DockerServices
from agent.sandbox.protocol import SandboxRequest, Service, ServiceState
from headrace.pipeline.plan import Network
from tests.harness import images
from tests.harness.outside import METADATA, own_addresses
from tests.harness.outside import service as host_service
from tests.harness.sandbox_job import SandboxJob
from tests.harness.sandbox_world import DOCKER_AGENT, World

pytestmark = [pytest.mark.root, pytest.mark.docker]

PROBE = """
import concurrent.futures, socket
def probe(target):
    try:
        socket.create_connection(target.rsplit(":", 1), 2).close()
        return target
    except OSError:
        return ""
def probe_all(targets):
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        return " ".join(pool.map(probe, targets)).split()
"""
"""Which of some `host:port` are reached."""
SCOUT = (
    PROBE
    + """
server = socket.create_server(("", 9000))
while True:
    asked, _ = server.accept()
    try:
        asked.sendall(" ".join(probe_all(asked.recv(10_000).decode().split())).encode())
    except OSError:
        pass  # it probed itself, and had nothing to say
    asked.close()
"""
)
"""A service that tries on a job's behalf what it can reach."""


@pytest.fixture(scope="session")
def scout(engine_url: str, debian_image: str) -> str:
    """The image of that service; `/data` is a volume of it."""
    program = f"import base64; exec(base64.b64decode('{base64.b64encode(SCOUT.encode()).decode()}'))"
    facts = {"VOLUME": "/data", "CMD": json.dumps(["python3", "-c", program])}
    return images.variant(engine_url, "headrace-test/scout:latest", debian_image, facts)


def asked(image: str, *names: str, ready: str = "") -> tuple[Service, ...]:
    """Services of that image."""
    return tuple(Service(name, image, {"GIVEN": name}, ready, 20.0) for name in names)


async def begun(world: World, services: tuple[Service, ...], network: Network, **more: object) -> SandboxJob:
    """A job with its services."""
    assert isinstance(world.sandbox, Docker)
    request = world.request(network, services=services, **more)
    await begin(world.sandbox, request)
    job = SandboxJob(request.folder, await world.sandbox.prepare(request))
    world.jobs.append((request.attempt, job))
    return await job.start()


async def begin(sandbox: Docker, request: SandboxRequest) -> None:
    host = DockerServices(sandbox)
    await host.open_network(request)
    await asyncio.gather(*(host.begin_service(request, each) for each in request.services))


async def from_job(job: SandboxJob, *targets: str) -> set[str]:
    """Those of some `host:port` that the job itself reaches."""
    ran = await job.run(f"python3 - <<'END'\n{PROBE}\nprint(*probe_all({targets}))\nEND\n")
    assert ran.code == 0, ran.out
    return set(ran.out.split())


async def from_service(job: SandboxJob, name: str, *targets: str) -> set[str]:
    """Those that one of its services reaches, which the job asks for it."""
    script = f"""python3 - <<'END'
import socket, time
for _ in range(100):
    try: s = socket.create_connection(({name!r}, 9000), 15); break
    except OSError: time.sleep(0.1)  # the service is about to listen
s.sendall(b"{" ".join(targets)}")
print(s.recv(10_000).decode())
END
"""
    ran = await job.run(script)
    assert ran.code == 0, ran.out
    return set(ran.out.split())


@pytest.mark.parametrize("network", [Network.NONE, Network.SERVICES, Network.FULL])
async def test_a_job_and_its_services_reach_each_other_by_name(
    docker_world: World, scout: str, network: Network
) -> None:
    """Whatever else the job may reach."""
    job = await begun(docker_world, asked(scout, "db", "other-db"), network)
    both = {"db:9000", "other-db:9000"}
    assert await from_service(job, "db", *both, "nobody:9000") == both
    assert await from_service(job, "other-db", *both, "db:9001") == both
    assert await from_job(job, *both) == both


async def test_a_service_reaches_the_world_only_where_its_job_does(
    docker_world: World, scout: str, outside: str
) -> None:
    """`network: none` and `services` have no way around them through a service."""
    targets = {f"{outside}:80", "db:9000"}
    for network, reached in ((Network.FULL, targets), (Network.NONE, {"db:9000"}), (Network.SERVICES, {"db:9000"})):
        job = await begun(docker_world, asked(scout, "db"), network)
        assert await from_service(job, "db", *targets) == reached
        assert await from_job(job, *targets) == reached


@pytest.mark.parametrize("network", [Network.NONE, Network.FULL])
async def test_a_service_reaches_neither_this_host_nor_the_clouds_metadata(
    docker_world: World, scout: str, outside: str, network: Network
) -> None:
    """Not by the gateway of its network either, which an inward network has as well."""
    async with host_service() as port:
        job = await begun(docker_world, asked(scout, "db"), network)
        near = {f"{address}:{port}" for address in own_addresses()} | {f"{METADATA}:80"}
        assert len(near) > 3, "the gateway is one of them"
        assert await from_service(job, "db", *near, "db:9000") == {"db:9000"}
        assert await from_job(job, *near, "db:9000") == {"db:9000"}
    with socket.create_connection((METADATA, 80), 2):
        pass  # this host does reach it


async def test_a_service_is_nobody_elses(docker_world: World, bubblewrap_world: World, scout: str) -> None:
    """Another job reaches it neither by address nor by name, and it reaches no other job's."""
    own = await begun(docker_world, asked(scout, "db"), Network.FULL)
    other = await begun(docker_world, asked(scout, "elsewhere"), Network.NONE)
    third = await bubblewrap_world.start(Network.FULL)
    address = (await own.run("getent hosts db")).out.split()[0]
    theirs = (await other.run("getent hosts elsewhere")).out.split()[0]
    ours, foreign = {f"{address}:9000", "db:9000"}, {f"{theirs}:9000", "elsewhere:9000"}
    assert await from_service(own, "db", *ours, *foreign) == ours
    assert await from_service(other, "elsewhere", *ours, *foreign) == foreign
    assert await from_job(other, *ours, *foreign) == foreign
    assert await from_job(third, *ours, *foreign) == set()


@contextlib.contextmanager
def looking(engine_url: str) -> Iterator[docker.APIClient]:
    client = docker.APIClient(base_url=engine_url, version="auto")
    try:
        yield client
    finally:
        client.close()


async def test_the_engine_shows_a_service_behind_the_jobs_walls(
    docker_world: World, scout: str, engine_url: str
) -> None:
    """As the engine has it: no capability, no volume, no published port, half of the slot, a bounded log."""
    await begun(docker_world, asked(scout, "db"), Network.NONE)
    with looking(engine_url) as client:
        listed = client.containers(filters={"label": f"headrace.agent={DOCKER_AGENT}"})
        shown, job = sorted(
            (client.inspect_container(each["Id"]) for each in listed),
            key=lambda each: service.LABEL_SERVICE not in each["Config"]["Labels"],
        )
    host = shown["HostConfig"]
    assert host["CapAdd"] in (None, [])
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges" in host["SecurityOpt"]
    assert any(option.startswith("seccomp=") for option in host["SecurityOpt"])
    assert shown["Mounts"] == []
    assert list(host["Tmpfs"]) == ["/data"]
    assert not host["PortBindings"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (1 << 29, 500_000_000, 150)
    assert host["LogConfig"]["Config"]["max-size"] == "1m"
    assert job["HostConfig"]["Memory"] == 1 << 29, "the job has the other half"


async def ended(sandbox: Docker, attempt: int, name: str) -> ServiceState:
    """The service's state once it has ended."""
    async with asyncio.timeout(20):
        while (state := (await DockerServices(sandbox).services(attempt))[name]).running:  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # the engine tells nobody but those who ask
    return state


@pytest.mark.parametrize(("trusted", "code"), [(True, 0), (False, 1)])
async def test_the_entrypoint_of_a_trusted_jobs_service_may_become_another_user(
    docker_world: World, engine_url: str, debian_image: str, *, trusted: bool, code: int
) -> None:
    """As that of postgres does: it takes its volume into possession and leaves root. An untrusted job's may not."""
    step_down = "exec setpriv --reuid 1000 --regid 1000 --clear-groups touch /data/x/y"
    script = f"mkdir /data/x && chown 1000:1000 /data/x && {step_down}"
    facts = {"VOLUME": "/data", "CMD": f'["sh", "-c", "{script}"]'}
    image = images.variant(engine_url, "headrace-test/steps-down:latest", debian_image, facts)
    assert isinstance(docker_world.sandbox, Docker)
    request = docker_world.request(services=asked(image, "db"), trusted=trusted)
    try:
        await begin(docker_world.sandbox, request)
        state = await ended(docker_world.sandbox, request.attempt, "db")
        assert state.exit_code == code, await DockerServices(docker_world.sandbox).service_log(request.attempt, "db")
    finally:
        await docker_world.sandbox.remove(request.attempt)


async def test_a_chatty_service_fills_neither_the_disk_nor_the_log(
    docker_world: World, engine_url: str, debian_image: str
) -> None:
    """The engine keeps the last of what it writes, and of that the last lines are shown."""
    facts = {"CMD": """["sh", "-c", "seq 1 300000; echo last words; exit 3"]"""}
    image = images.variant(engine_url, "headrace-test/chatty:latest", debian_image, facts)
    assert isinstance(docker_world.sandbox, Docker)
    request = docker_world.request(services=asked(image, "db"))
    try:
        await begin(docker_world.sandbox, request)
        state = await ended(docker_world.sandbox, request.attempt, "db")
        log = await DockerServices(docker_world.sandbox).service_log(request.attempt, "db")
    finally:
        await docker_world.sandbox.remove(request.attempt)
    assert (state.exit_code, state.ready) == (3, False)
    assert log.endswith(b"\n300000\nlast words\n")
    assert service.LOG_TAIL - 10 < len(log) <= service.LOG_TAIL


def held(client: docker.APIClient) -> Mapping[str, list[str]]:
    """What the engine has of this agent's attempts, and all its volumes."""
    label = {"label": f"headrace.agent={DOCKER_AGENT}"}
    return {
        "containers": [each["Labels"]["headrace.attempt"] for each in client.containers(all=True, filters=label)],
        "networks": [each["Labels"]["headrace.attempt"] for each in client.networks(filters=label)],
    }


async def test_services_are_removed_and_swept_like_all_else(docker_world: World, scout: str, engine_url: str) -> None:
    """Also those whose job's own container was never made: an agent may die between the two."""
    sandbox = docker_world.sandbox
    assert isinstance(sandbox, Docker)
    kept, lost = (docker_world.request(services=asked(scout, "db", "other")) for _ in range(2))
    for request in (kept, lost):
        await begin(sandbox, request)
    with looking(engine_url) as client:
        one, both = str(kept.attempt), sorted([str(kept.attempt), str(lost.attempt)])
        assert sorted(held(client)["networks"]) == both
        await sandbox.sweep(frozenset({kept.attempt}))
        assert held(client) == {"containers": [one, one], "networks": [one]}
        assert all(state.running for state in (await DockerServices(sandbox).services(kept.attempt)).values())
        await sandbox.remove(kept.attempt)
        await sandbox.remove(kept.attempt)
        assert held(client) == {"containers": [], "networks": []}
