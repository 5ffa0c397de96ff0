"""Agents on machines of their own, whose network is cut, goes deaf or mute, loses, delays and forgets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.chaos.conftest import long_form
from tests.chaos.network import Machine, Network, network
from tests.chaos.proxy import Proxy
from tests.chaos.work import LEASE_S, SHORT, Counting, User
from tests.harness.waiting import wait_for
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import Daemon, agent, metric

pytestmark = [pytest.mark.timeout(300), pytest.mark.root]

LOSS = 0.05
DELAY_S = 0.2
INSECURE = {"HEADRACE_INSECURE": "true"}
SILENCING: Mapping[str, Callable[[Machine], object]] = {
    "cut": Machine.cut,
    "deaf": Machine.deaf,
    "mute": Machine.mute,
}
"""After a whole lease of these an attempt is lost: nobody heard its agent, or it heard nobody."""


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as made:
        yield made


MakeHub = Callable[..., Daemon]


@pytest.fixture
def make_hub(net: Network, make_coordinator: Make) -> MakeHub:
    """`make_hub(VARIABLE="value")`: a coordinator that the machines reach, ready."""

    def make(**environment: str) -> Daemon:
        made = make_coordinator("c", **INSECURE, **environment)
        made.arguments |= {"listen": f"{net.hub}:0", "blob-listen": f"{net.hub}:0"}
        made.start()
        return made

    return make


@pytest.fixture
def start_agent(daemons: list[Daemon], tmp_path: Path) -> Callable[..., None]:
    """`start_agent(hub, "name", machine)`: one with a pool of its own; `url` is where it connects to."""

    def start(of: Daemon, name: str, machine: Machine | None = None, url: str = "") -> None:
        made = agent(tmp_path / name, of, name, **INSECURE)
        made.arguments |= {"pool": name, "slots": "1"} | ({"url": url} if url else {})
        made.prefix = machine.prefix if machine else ()
        daemons.append(made)
        made.start()

    return start


def test_an_agent_that_cannot_be_heard_or_cannot_hear_loses_its_attempt_once_and_comes_back(
    net: Network, make_hub: MakeHub, start_agent: Callable[..., None]
) -> None:
    """Shorter than a lease, a cut costs nothing. Longer, the attempt is lost, and its job is done again by the agent
    that came back: what it went on with meanwhile counts for nothing. One direction is as good as both."""
    hub = make_hub(**SHORT)
    machines = {name: net.machine() for name in SILENCING}
    for name, machine in machines.items():
        start_agent(hub, name, machine)
    work = [Counting(name, 600, pool=name) for name in SILENCING]

    def silence() -> None:
        for name, fault in SILENCING.items():
            fault(machines[name])

    def heal() -> None:
        for machine in machines.values():
            machine.heal()

    with User(hub) as user:
        run = user.begin(work)
        user.until_it_writes(run, *work)
        silence()
        with contextlib.suppress(AssertionError):  # half a lease: nothing is to happen
            wait_for(lambda: metric(hub, "headrace_sessions") < len(work), "a session ends", LEASE_S / 2)
        heal()
        user.until_it_writes(run, *work)
        assert [user.states(run, each.name) for each in work] == [["running"]] * len(work)
        silence()
        wait_for(
            lambda: all(user.states(run, each.name)[0] == "lost" for each in work), "their leases end", 4 * LEASE_S
        )
        heal()
        user.until_over(run)
        for each in work:
            user.judge(run, each, ["lost", "passed"])
            assert user.attempts(run, each.name)[0].sentence == "its agent fell silent"
        wait_for(lambda: metric(hub, "headrace_sessions") == len(work), "all agents are there", 20)
        assert metric(hub, "headrace_lost_sight") == 0


@long_form
def test_networks_that_lose_delay_or_forget_lose_no_attempt(
    net: Network, make_hub: MakeHub, start_agent: Callable[..., None], daemons: list[Daemon]
) -> None:
    """5 % of the packets lost in each direction; 200 ms for all that is said in each direction; all connections silent
    without a reset, as behind a router that was started again: every log is whole after one attempt."""
    hub = make_hub()
    lossy, half_open = net.machine(), net.machine()
    start_agent(hub, "lossy", lossy)
    start_agent(hub, "half_open", half_open)
    with Proxy(hub.facts["address"]) as slow, User(hub) as user:
        slow.delay_s = DELAY_S
        start_agent(hub, "slow", url=slow.address)
        work = [Counting(name, 110, pool=name) for name in ("lossy", "half_open", "slow")]
        run = user.begin(work)
        user.until_it_writes(run, *work)
        lossy.lose(LOSS)
        assert half_open.forget_connections() >= 2, "its session, and its logs"
        user.until_over(run)
        for each in work:
            user.judge(run, each, ["passed"])
        wait_for(lambda: metric(hub, "headrace_sessions") == len(work), "all agents are there", 20)
        for each in reversed(daemons):
            each.end()  # while their ways to the coordinator are there
