"""Three replicas restarted one after another under load: milliseconds from a job's queueing to its claim.

    python benchmarks/rolling_restart.py [--rounds N] [--seconds S] [--runs-per-s R]

Real coordinators on one PostgreSQL and real agents, each of which knows all replicas; clients create runs of one job at
a steady rate and know all replicas too. A round is a while without, then a restart (TERM, wait, start) of each replica
in turn, while the load goes on. The value is the p99 of the jobs that were created during restarts, the peer that of
the others. A client call that fails, or a job that does not pass at its first attempt, ends it with an error. Needs
root.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.result import quantile, result
from headrace.client.types import Source
from tests.chaos.campaign.fleet import LONG, Fleet, made_fleet
from tests.chaos.engine import own_engine
from tests.harness.waiting import wait_for

_PERSONS = 4
_PIPELINE = b"""
name: quick
stages: [{name: s, jobs: {j: {sandbox: host, checkout: false, steps: [{run: 'true'}]}}}]
"""
_LATENCIES = """
SELECT j.run_id, extract(epoch FROM a.leased_at - j.queued_at)::float8 * 1000 AS ms, a.state
FROM job j JOIN attempt a ON a.job_id = j.id
"""


@dataclass
class Load:
    """Clients that create runs until they are told to stop."""

    fleet: Fleet
    every: float
    """Seconds between two runs of one person."""
    calls: list[tuple[float, float, int]] = field(default_factory=list)
    """When each call was made and answered (monotonic), and the run."""
    failures: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._live) for _ in range(_PERSONS)]
        for each in self._threads:
            each.start()

    def stop(self) -> None:
        """Returns when the last call is answered."""
        self._stop.set()
        for each in self._threads:
            each.join()

    def _live(self) -> None:
        source = Source("quick", "0" * 40, url="https://nowhere.invalid/repository", branch="main")
        with self.fleet.client() as client:
            while not self._stop.wait(self.every):
                asked = time.monotonic()
                try:
                    run = client.create_run(source, _PIPELINE).id
                except Exception as error:
                    self.failures.append(error)
                    return
                self.calls.append((asked, time.monotonic(), run))


def roll(fleet: Fleet) -> None:
    """Restarts each replica in turn, and lets its agents come to rest in between."""
    for each in fleet.replicas:
        each.up = False
        if code := each.daemon.terminate():
            raise RuntimeError(f"a replica ended with {code}:\n{each.daemon.said[-2000:]}")
        fleet.start(each)
        fleet.all_back()


def show(what: str, found: list[float]) -> None:
    p50, p99 = quantile(found, 0.5), quantile(found, 0.99)
    print(f"{what}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {max(found):.1f} ms of {len(found)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--runs-per-s", type=float, default=3.0)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hr-rolling-"))
    folder.chmod(0o755)
    try:
        scale = dataclasses.replace(LONG, agents=4, stepped=False)
        with own_engine(folder / "e") as engine, made_fleet(folder / "fleet", scale, engine) as fleet:
            load = Load(fleet, _PERSONS / given.runs_per_s)
            spans = []
            for _ in range(given.rounds):
                time.sleep(given.seconds)
                begun = time.monotonic()
                roll(fleet)
                spans.append((begun, time.monotonic()))
            load.stop()
            return judged(fleet, load, spans)
    finally:
        shutil.rmtree(folder)


def judged(fleet: Fleet, load: Load, spans: list[tuple[float, float]]) -> int:
    """Prints what was measured; 1 if anything was lost."""
    unfinished = "SELECT 1 FROM run WHERE state <> 'passed' LIMIT 1"
    wait_for(lambda: not fleet.postgres.rows(unfinished), "the end of all runs", 120)
    rows = {row["run_id"]: row for row in fleet.postgres.rows(_LATENCIES) if row["state"] != "returned"}
    wrong = [str(error) for error in load.failures]
    if len(rows) != len(load.calls) or any(row["state"] != "passed" for row in rows.values()):
        wrong.append(f"{len(load.calls)} runs were created, these attempts were made: {list(rows.values())}")
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 1
    claims: dict[bool, list[float]] = {True: [], False: []}
    calls: dict[bool, list[float]] = {True: [], False: []}
    for asked, answered, run in load.calls:
        rolling = any(begun <= answered and asked <= ended for begun, ended in spans)
        claims[rolling].append(rows[run]["ms"])
        calls[rolling].append((answered - asked) * 1000)
    show("CreateRun, restarts", calls[True])
    show("CreateRun, none", calls[False])
    show("queued to claimed, restarts", claims[True])
    show("queued to claimed, none", claims[False])
    value, peer = quantile(claims[True], 0.99), quantile(claims[False], 0.99)
    print(result("rolling_restart", value, "ms", "the same load without restarts", peer).line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
