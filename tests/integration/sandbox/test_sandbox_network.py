"""`network: full`: the world outside, and nothing near: not this host, not other jobs, not the cloud's metadata."""

from __future__ import annotations

import socket

import pytest

from agent.problems import Cause, JobProblem
from headrace.pipeline.plan import Network
from tests.harness.outside import METADATA, own_addresses, service
from tests.harness.sandbox_job import SandboxJob
from tests.harness.sandbox_world import World, bubblewrap

pytestmark = [pytest.mark.root, pytest.mark.docker]


async def reaches(job: SandboxJob, address: str, port: int) -> bool:
    """Whether a job's connection is answered within two seconds."""
    script = f"import socket; socket.create_connection(({address!r}, {port}), 2)"
    return (await job.run(f'python3 -c "{script}"')).code == 0


async def test_a_job_reaches_the_world_outside(world: World, outside: str) -> None:
    """Else `full` would be empty words."""
    job = await world.start(Network.FULL)
    assert await reaches(job, outside, 80)


async def test_a_job_does_not_reach_the_clouds_metadata(world: World, outside: str) -> None:
    """There lie the machine's credentials; the same server answers at an ordinary address."""
    job = await world.start(Network.FULL)
    with socket.create_connection((METADATA, 80), 2):
        pass  # this host does reach it
    assert not await reaches(job, METADATA, 80)


async def test_a_job_does_not_reach_this_host_by_any_of_its_addresses(world: World) -> None:
    """Not by the gateway, not by the address of its network card, not by loopback."""
    async with service() as port:
        job = await world.start(Network.FULL)
        routes = await job.run("cat /proc/net/route")
        fields = next(line.split() for line in routes.out.splitlines() if line.split()[1] == "00000000")
        gateway = socket.inet_ntoa(int(fields[2], 16).to_bytes(4, "little"))
        addresses = own_addresses()
        assert gateway in addresses
        for address in addresses:
            assert not await reaches(job, address, port), address


async def test_a_job_does_not_reach_another_job_of_either_kind(bubblewrap_world: World, docker_world: World) -> None:
    """Jobs of one machine are strangers."""
    jobs = [await world.start(Network.FULL) for world in (bubblewrap_world, docker_world, bubblewrap_world)]
    jobs.append(await docker_world.start(Network.FULL))
    listen = "import socket, time; s = socket.create_server(('', 8000)); time.sleep(60)"
    mine = "import socket; s = socket.socket(2, 2); s.connect(('203.0.113.7', 9)); print(s.getsockname()[0])"
    addresses = []
    for job in jobs:
        await job.run(f'python3 -c "{listen}" >/dev/null 2>&1 & sleep 0.3')
        assert await reaches(job, "127.0.0.1", 8000)
        addresses.append((await job.run(f'python3 -c "{mine}"')).out.strip())
    assert len(set(addresses)) == 4
    for job, own in zip(jobs, addresses, strict=True):
        for address in addresses:
            assert await reaches(job, address, 8000) == (address == own), (own, address)


async def test_a_job_has_no_ipv6_way_out(world: World) -> None:
    """Rules for IPv4 alone would be a wall with a gap: fd00:ec2::254 is metadata too."""
    job = await world.start(Network.FULL)
    ran = await job.run("cat /proc/net/if_inet6 2>/dev/null || true")
    foreign = [line for line in ran.out.splitlines() if line.split()[-1] != "lo"]
    assert foreign == []


async def test_names_are_resolved_by_the_hosts_servers(bubblewrap_world: World) -> None:
    """Without DNS nobody can use the network."""
    job = await bubblewrap_world.start(Network.FULL)
    ran = await job.run("cat /etc/resolv.conf")
    assert ran.out.startswith("nameserver ")


async def test_an_agent_without_filter_refuses_a_network(bubblewrap_world: World) -> None:
    """It must not fall back to the host's network for somebody else's code."""
    sandbox = bubblewrap(bubblewrap_world.folder / "s", "test-nonet")
    sandbox._networks = None
    bubblewrap_world.sandbox = sandbox
    with pytest.raises(JobProblem) as caught:
        await sandbox.prepare(bubblewrap_world.request(Network.FULL, own_code=True))
    assert caught.value.cause is Cause.REFUSED


async def test_the_users_own_code_may_share_the_hosts_network(bubblewrap_world: World) -> None:
    """A local run of the user's own code sees what the user sees: a server on loopback, say."""
    sandbox = bubblewrap(bubblewrap_world.folder / "s", bubblewrap_world.agent, own_network=True)
    bubblewrap_world.sandbox = sandbox
    async with service() as port:
        job = await bubblewrap_world.start(Network.FULL, own_code=True)
        assert await reaches(job, "127.0.0.1", port)
        stranger = await bubblewrap_world.start(Network.FULL, own_code=False)
        assert not await reaches(stranger, "127.0.0.1", port)
