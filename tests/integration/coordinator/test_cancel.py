"""A cancel at every point of a job's life: how soon the job hears of it, and what still runs."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace.client import Run, Source, SyncClient
from headrace.client.types import LogBytes
from tests.chaos.proxy import Proxy
from tests.harness.command_line import git_repository
from tests.harness.waiting import wait_for
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import Daemon, token

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="a bubblewrap sandbox of an agent that is root"),
]

SOON_S = 2.0
"""From the cancel's answer to the signal, or to the end where there is nothing to signal."""
GRACE_S = 2.0
STEP_S = 2.0
"""What cleaning up and the end of a job take on a busy machine, beside that."""
UNTIL_TERM = "trap 'date +term=%s.%N; exit 1' TERM; echo ready; while :; do sleep 0.05; done"
DEAF = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
CLEAN = "{if: canceled(), run: 'date +clean=%s.%N'}"
NEVER = "{run: 'echo never'}"


def steps(*each: str) -> str:
    """A pipeline of one job."""
    return f"stages: [{{name: s, jobs: {{j: {{network: none, grace: {GRACE_S:g}s, steps: [{', '.join(each)}]}}}}}}]\n"


RUNNING = steps(f'{{run: "{UNTIL_TERM}"}}', NEVER, CLEAN)
PIPELINES = {
    "running": RUNNING.replace("}]\n", "}, {name: t, jobs: {after: {network: none, steps: [{run: 'true'}]}}}]\n"),
    "deaf": steps(f'{{run: "{DEAF}"}}', NEVER, CLEAN),
    "cleaning": steps("{run: 'exit 1'}", f'{{if: always(), run: "{UNTIL_TERM}"}}', NEVER, CLEAN),
    "between": steps("{run: 'echo ready; exit 1', retry: {max: 5, delay: 1h}}", NEVER, CLEAN),
    "queued": steps(NEVER).replace("network", "requires: {there-is: none}, network"),
    "blocked": steps(NEVER).replace("name: s,", "name: s, approval: {message: May it?},"),
    "ended": steps("{run: 'true'}"),
    "checkout": steps(NEVER),
    "artifacts": steps("{run: 'echo x > x; echo ready'}").replace(
        "network", "artifacts: [{name: x, paths: [x]}], network"
    ),
}


class Person:
    """Somebody who starts runs, looks at them and cancels them."""

    def __init__(self, of: Daemon, repository: Path) -> None:
        self._client = SyncClient(of.facts["address"], token(of, "client"))
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=repository, check=True, capture_output=True, text=True
        )
        self._source = Source(repository="r", path=str(repository), commit=commit.stdout.strip(), branch="main")

    def start(self, text: str, url: str = "") -> int:
        source = Source(repository=url, url=url, commit="0" * 40, branch="main") if url else self._source
        return self._client.create_run(source, f"name: p\n{text}".encode()).id

    def run(self, number: int) -> Run:
        return self._client.run(number)

    def job(self, number: int, key: str = "j") -> str:
        return next(str(job.state) for job in self.run(number).jobs if job.key == key)

    def log(self, number: int) -> str:
        records = self._client.tail(number, "j", follow=False)
        return b"".join(each.data for each in records if isinstance(each, LogBytes)).decode()

    def says(self, number: int, word: str) -> None:
        wait_for(lambda: self.job(number) == "running" and word in self.log(number), f"`{word}` of run {number}")

    def attempts(self, number: int) -> int:
        return sum(len(job.attempts) for job in self.run(number).jobs)

    def cancel(self, number: int) -> float:
        """Sends one request twice; returns when it was answered first, in seconds of the machine's clock."""
        request = secrets.token_hex(16)
        self._client.cancel(number, request_id=request)
        answered = time.time()
        self._client.cancel(number, request_id=request)
        return answered

    def ended(self, number: int) -> float:
        """Waits for the end of a run; returns when the coordinator recorded it."""
        for _ in self._client.watch(number):
            pass
        run = self.run(number)
        assert run.ended_at is not None
        return run.ended_at.timestamp()

    def heard(self, number: int, word: str) -> float:
        """When the job wrote this."""
        found = re.search(rf"^{word}=([\d.]+)$", self.log(number), re.MULTILINE)
        assert found is not None, self.log(number)
        return float(found[1])


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """A URL whose server takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/r.git"


def test_a_cancel_is_heard_at_every_point_of_a_jobs_life(
    make_coordinator: Make, make_agent: Make, tmp_path: Path
) -> None:
    """Somebody who has pressed the wrong button waits for nothing: whatever the job is at, it is told within 2 s, what
    it has begun is cleaned up, and what does not listen is killed when its grace is over."""
    git_repository(tmp_path / "repository", {"a": "a"})
    with Proxy("") as uploads, silent_server() as nowhere:
        of = make_coordinator(HEADRACE_LOCAL_PATHS="true", HEADRACE_BLOB_PUBLIC_URL=f"http://{uploads.address}")
        of.start()
        uploads.target = of.facts["blobs"]
        uploads.stall()
        side = make_agent(of)
        side.arguments["slots"] = "8"
        side.start()
        person = Person(of, tmp_path / "repository")
        runs = {name: person.start(text, nowhere if name == "checkout" else "") for name, text in PIPELINES.items()}
        for name in ("running", "deaf", "cleaning", "between"):
            person.says(runs[name], "ready")
        wait_for(lambda: person.job(runs["checkout"]) == "running", "the checkout begins")
        wait_for(lambda: person.job(runs["ended"]) == "passed", "one has ended")
        assert uploads.wait_for_connections(1, 30)
        assert [person.job(runs[name]) for name in ("queued", "blocked")] == ["queued", "blocked"]
        assert person.job(runs["running"], "after") == "waiting"
        with ThreadPoolExecutor(len(runs)) as at_once:
            told = dict(zip(runs, at_once.map(person.cancel, runs.values()), strict=True))
            soon = [name for name in runs if name not in ("deaf", "artifacts")]
            ended = dict(zip(soon, at_once.map(person.ended, [runs[name] for name in soon]), strict=True))
        late = {name: at - told[name] for name, at in ended.items() if at - told[name] > SOON_S + STEP_S}
        assert not late, late
        for name in ("running", "cleaning"):
            assert person.heard(runs[name], "term") - told[name] < SOON_S
        for name in ("running", "cleaning", "between"):
            assert person.heard(runs[name], "clean") - told[name] < SOON_S + STEP_S
        person.ended(runs["deaf"])
        # Not sooner: the same request once more is no second cancel.
        assert GRACE_S - 0.5 < person.heard(runs["deaf"], "clean") - told["deaf"] < GRACE_S + SOON_S + STEP_S
        # All of its steps have passed: what it has made is kept, unless somebody asks once more.
        assert person.run(runs["artifacts"]).ended_at is None
        again = person.cancel(runs["artifacts"])
        assert person.ended(runs["artifacts"]) - again < SOON_S
        frozen = unheard(person, side)
        for name, number in (*runs.items(), ("assigned", frozen)):
            assert person.job(number) == ("passed" if name == "ended" else "canceled"), name
            assert "never" not in person.log(number), name
        assert person.job(runs["running"], "after") == "canceled"
    assert "Traceback" not in of.said + side.said


def unheard(person: Person, side: Daemon) -> int:
    """A run that is canceled while its assignment is on the way to an agent that does not listen."""
    side.process.send_signal(signal.SIGSTOP)
    try:
        number = person.start(steps(NEVER))
        wait_for(lambda: person.attempts(number), "the job is assigned", 3)
        person.cancel(number)
    finally:
        side.process.send_signal(signal.SIGCONT)
    told = time.time()
    assert person.ended(number) - told < SOON_S
    return number
