"""A link that says nothing any more: both ends give it up within 15 s, and nobody is told `too_many_pings`."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import grpc
import pytest

from headrace.v1 import log_pb2, log_pb2_grpc
from tests.chaos.proxy import DOWN, UP, Proxy
from tests.harness.command_line import git_repository
from tests.harness.waiting import wait_for
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import Daemon, agent, bearer, client, metric, token

pytestmark = pytest.mark.timeout(240)

SILENCE = 15.0
SLACK = 5.0
"""Of a busy machine."""
PIPELINE = "name: slow\nstages: [{name: a, jobs: {unit: {steps: [{run: 'echo here; sleep 600'}]}}}]\n"


def test_a_silent_link_is_given_up_by_both_ends(make_coordinator: Make, daemons: list[Daemon], tmp_path: Path) -> None:
    """Elsewhere a dead agent is noticed at the timeout of its job. Three links at once: one on which nothing arrives
    any more, one on which nothing comes back, and one that is dead. A tail that waits for more is cut as well."""
    of = make_coordinator()
    of.start()
    with contextlib.ExitStack() as up:
        links = [(ways, up.enter_context(Proxy(of.facts["address"]))) for ways in ((UP,), (DOWN,), (UP, DOWN))]
        for number, (_, proxy) in enumerate(links):
            side = agent(tmp_path / f"a{number}", of, f"a{number}")
            side.arguments["url"] = proxy.address
            daemons.append(side)
            side.start()
        wait_for(lambda: metric(of, "headrace_sessions") == len(links), "the agents' sessions", 30)
        repository = tmp_path / "repo"
        git_repository(repository, {"headrace.yml": PIPELINE})
        line = client(of, repository, tmp_path / "state")
        started = line("run", "--detach", "--json")
        assert started.code == 0, started.err
        wait_for(lambda: "here" in line("logs").out, "the first line of the log", 60)
        tails = [_Tail(proxy.address, token(of, "client")) for _, proxy in links]
        assert all(tail.heard.wait(30) for tail in tails), "the tails hear what there is"
        before = [proxy.accepted for _, proxy in links]
        for ways, proxy in links:
            proxy.stall(*ways)
        end = time.monotonic() + SILENCE + SLACK
        wait_for(lambda: metric(of, "headrace_sessions") == 0, "the coordinator lets go", SILENCE + SLACK)
        for (ways, proxy), count, tail in zip(links, before, tails, strict=True):
            left = max(0.1, end - time.monotonic())
            assert proxy.wait_for_connections(count + 1, left), f"the agent dials anew: {ways}"
            assert tail.ended.wait(max(0.1, end - time.monotonic())), f"the client's tail ends: {ways}"
        for _, proxy in links:
            proxy.resume()
            proxy.cut()
        wait_for(lambda: metric(of, "headrace_sessions") == len(links), "the agents are back", 30)
        assert '"state": "running"' in line("show", "--json").out, "and the job has not noticed"
        assert line("cancel", "1").code == 0
        wait_for(lambda: '"state": "canceled"' in line("show", "--json").out, "the end", 30)
    assert "too_many_pings" not in "".join(each.said for each in daemons).lower()


class _Tail:
    """A client that waits for more of a log, over gRPC with the channel of the command line."""

    def __init__(self, address: str, key: str) -> None:
        self.heard, self.ended = threading.Event(), threading.Event()
        self._address, self._key = address, key
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        from headrace.client.address import addresses
        from headrace.client.channel import options

        (address,) = addresses(self._address, insecure=False)
        with contextlib.closing(grpc.insecure_channel(address.target, options=options(address))) as channel:
            request = log_pb2.TailRequest(run_id=1, job="unit", follow=True)
            try:
                for _ in log_pb2_grpc.LogServiceStub(channel).Tail(request, metadata=bearer(self._key)):
                    self.heard.set()
            except grpc.RpcError:
                self.ended.set()
