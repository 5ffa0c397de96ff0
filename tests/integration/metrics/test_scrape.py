"""What a real Prometheus reads off a fleet at work. One fleet, one story: the tests go on from each other."""

from __future__ import annotations

import json

import pytest

from tests.integration.coordinator.processes import Daemon
from tests.integration.metrics.conftest import Fleet
from tests.integration.metrics.prometheus import complaints, get

pytestmark = [pytest.mark.prometheus, pytest.mark.timeout(180)]

MUST_BE_0 = (
    "headrace_lost_sight",
    "headrace_waiting_for_nothing",
    "headrace_queued_without_place",
    "headrace_agent_machinery_failures_total",
)


def outcomes(fleet: Fleet, name: str) -> dict[tuple[str, str], float]:
    """(outcome, cause) -> attempts."""
    found = [(dict(labels), value) for labels, value in fleet.prometheus.ask(name).items()]
    return {(labels["outcome"], labels["cause"]): value for labels, value in found}


def test_both_daemons_are_up(fleet: Fleet) -> None:
    """`up` is 1 only when the whole page could be parsed."""
    for job in ("coordinator", "agent"):
        fleet.prometheus.until(f'up{{job="{job}"}}', 1)
    assert fleet.prometheus.targets() == {"coordinator": "", "agent": ""}


def test_a_passed_and_a_failed_job_are_counted_by_outcome_and_cause(fleet: Fleet) -> None:
    """The alert on failing machinery must be able to tell it from a failing command."""
    assert fleet.line("run", "passing.yml", seconds=90).code == 0
    assert fleet.line("run", "failing.yml", seconds=90).code == 1
    fleet.prometheus.until("sum(headrace_outcomes_total)", 2)
    counted = {("passed", "none"): 1.0, ("failed", "step_failed"): 1.0}
    assert outcomes(fleet, "headrace_outcomes_total") == counted
    fleet.prometheus.until("sum(headrace_agent_outcomes_total)", 2)
    assert outcomes(fleet, "headrace_agent_outcomes_total") == counted


def test_dispatch_latency_and_sandbox_start_are_histograms(fleet: Fleet) -> None:
    """Each job was dispatched once and started one sandbox; buckets, count and sum agree."""
    ask = fleet.prometheus.value
    assert ask("headrace_dispatch_latency_seconds_count") == 2
    assert ask('headrace_dispatch_latency_seconds_bucket{le="+Inf"}') == 2
    assert 0 < (ask("headrace_dispatch_latency_seconds_sum") or 0) < 30
    assert ask("headrace_agent_sandbox_start_seconds_count") == 2
    assert set(fleet.prometheus.ask("headrace_agent_sandbox_start_seconds_count")) == {
        (("job", "agent"), ("sandbox", "bubblewrap"))
    }
    assert 0 < (ask("headrace_agent_sandbox_start_seconds_sum") or 0) < 60


def test_log_bytes_are_those_that_the_jobs_wrote(fleet: Fleet) -> None:
    """Neither more nor less than what `headrace logs` gives back; the agent counts them compressed."""
    logs = [fleet.line("logs", run, "j0").out for run in ("1", "2")]
    assert "".join(f"{n}\n" for n in range(1, 2001)) in logs[0]
    stored = sum(len(each.encode()) for each in logs)
    fleet.prometheus.until("headrace_log_bytes_total", stored)
    assert 0 < (fleet.prometheus.value("headrace_agent_log_bytes_total") or 0) < stored


def test_running_and_queued_jobs_are_told_by_pool(fleet: Fleet) -> None:
    """Three jobs, two slots: two run, one is queued; canceled, none."""
    started = fleet.line("run", "slow.yml", "--detach", "--json")
    assert started.code == 0, started.err
    run = str(json.loads(started.out)["id"])
    fleet.prometheus.until('headrace_jobs_running{pool="default"}', 2)
    fleet.prometheus.until('headrace_queue_depth{pool="default"}', 1)
    fleet.prometheus.until("headrace_agent_running_jobs", 2)
    assert fleet.prometheus.value("headrace_agent_slots") == 2

    assert fleet.line("cancel", run).code == 0
    fleet.prometheus.until('headrace_jobs_running{pool="default"}', 0)
    fleet.prometheus.until('headrace_queue_depth{pool="default"}', 0)
    fleet.prometheus.until("headrace_agent_running_jobs", 0)
    fleet.prometheus.until('headrace_outcomes_total{outcome="canceled", cause="canceled"}', 2)


@pytest.mark.parametrize("name", MUST_BE_0)
def test_what_must_be_0_is_there_and_0(fleet: Fleet, name: str) -> None:
    """A gauge that is missing would never alert: it has to be told, and to be 0."""
    fleet.prometheus.until(name, 0)
    assert fleet.prometheus.value(f"max_over_time({name}[10m])") == 0


def test_process_metrics_are_told(fleet: Fleet) -> None:
    """Memory, CPU, descriptors and start of both daemons."""
    for name in ("process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"):
        found = fleet.prometheus.ask(name)
        assert {dict(labels)["job"] for labels in found} == {"coordinator", "agent"}
        assert all(value > 0 for value in found.values())


def test_both_pages_pass_promtool(fleet: Fleet) -> None:
    """Names, help texts and types as Prometheus wants them."""
    for daemon in (fleet.coordinator, fleet.agent):
        status, page = get(fleet.page(daemon))
        assert status == 200
        assert complaints(page) == ""


def test_agents_are_told_by_state(fleet: Fleet) -> None:
    """Connected, drained by a person, connected again."""
    told = fleet.prometheus.until
    told('headrace_agents{state="connected"}', 1)
    assert fleet.line("drain", "measured").code == 0
    told('headrace_agents{state="draining"}', 1)
    told('headrace_agents{state="connected"}', 0)
    assert fleet.line("drain", "measured", "--undo").code == 0
    told('headrace_agents{state="connected"}', 1)
    told("headrace_sessions", 1)
    told("headrace_agent_connected", 1)


@pytest.mark.parametrize("page", ["healthz", "readyz"])
def test_a_fleet_at_work_is_healthy_and_ready(fleet: Fleet, page: str) -> None:
    """For balancers and orchestrators: a status, and a word for people."""
    daemons: list[Daemon] = [fleet.coordinator, fleet.agent]
    assert [get(fleet.page(each, page))[0] for each in daemons] == [200, 200]


def test_an_agent_that_left_is_gone_and_no_longer_up(fleet: Fleet) -> None:
    """SIGTERM on an idle agent: it leaves by itself, and the coordinator says so at once."""
    assert fleet.agent.terminate() == 0
    fleet.prometheus.until('headrace_agents{state="gone"}', 1)
    fleet.prometheus.until('headrace_agents{state="connected"}', 0)
    fleet.prometheus.until('up{job="agent"}', 0)
    fleet.prometheus.until('up{job="coordinator"}', 1)
