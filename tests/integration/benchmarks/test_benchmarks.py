"""The benchmarks still measure: each runs with tiny numbers, and its last line is what programs read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent.session import Outbox
from benchmarks.harness.agents import AppendStream, Finished, Simulated, SimulatedJobs
from headrace.v1 import agent_pb2, common_pb2, log_pb2

ROOT = Path(__file__).resolve().parents[3]
FIELDS = {"name", "value", "unit", "peer", "peer_value", "ratio"}


def measured(script: str, *arguments: str) -> list[dict[str, object]]:
    """The JSON lines of one benchmark."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def is_a_measure(found: dict[str, object], name: str) -> None:
    assert set(found) == FIELDS
    assert found["name"] == name
    ours, theirs, ratio = (float(str(found[key])) for key in ("value", "peer_value", "ratio"))
    assert ours > 0
    assert ratio == pytest.approx(ours / theirs, rel=0.01)


class Counting(Finished):
    """Whose end was told."""

    def __init__(self) -> None:
        super().__init__()
        self.over: list[int] = []

    def tell(self, job: Simulated) -> None:
        """Keeps it."""
        self.over.append(job.attempt)


def test_an_agent_of_a_benchmark_takes_the_same_end_of_a_log_twice() -> None:
    """Two batches that the coordinator stores together are both answered with it."""
    finished, log = Counting(), AppendStream()
    jobs = SimulatedJobs(Outbox(), log, finished)
    jobs.begin(agent_pb2.Assignment(attempt_id=8, token=b"t", spec=common_pb2.JobSpec(run_id=1).SerializeToString()))
    for _ in ("started", "ended"):
        jobs.answered(agent_pb2.ReportAnswer(attempt_id=8))
    for _ in range(2):
        log.durable(log_pb2.Durable(attempt_id=8, stream="main", sequence=5))
    assert finished.over == [8]


@pytest.mark.timeout(300)
def test_the_throughput_of_dispatch_is_measured_beside_its_peer() -> None:
    """A claim of speed that nobody can run again is none."""
    arguments = ("--jobs=20", "--run-jobs=4", "--agents=4", "--peer-builds=2", "--rounds=1")
    (found,) = measured("dispatch_throughput", *arguments)
    is_a_measure(found, "dispatch_throughput")


@pytest.mark.timeout(300)
def test_the_latency_of_dispatch_is_measured_beside_its_peer() -> None:
    """The same for how long a free agent waits for a job."""
    (found,) = measured("dispatch_latency", "--samples=3", "--peer-samples=2", "--agents=2", "--rounds=1")
    is_a_measure(found, "dispatch_latency")


@pytest.mark.root
@pytest.mark.timeout(300)
def test_a_rolling_restart_costs_no_call_and_no_job_and_is_measured_beside_calm() -> None:
    """It ends with an error if a call fails or a job does not pass at once."""
    (found,) = measured("rolling_restart", "--rounds=1", "--seconds=4", "--runs-per-s=2")
    is_a_measure(found, "rolling_restart")


@pytest.mark.root
@pytest.mark.docker
@pytest.mark.timeout(300)
def test_the_start_of_both_sandboxes_is_measured_beside_docker_run() -> None:
    """The line of the docker sandbox comes last: it is the one that is like its peer."""
    bubblewrap, docker = measured("sandbox_start", "--samples=1", "--network=none")
    is_a_measure(bubblewrap, "sandbox_start_bubblewrap")
    is_a_measure(docker, "sandbox_start")
