"""The runs of a campaign: what their jobs print and write is known to the last byte."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field

from headrace.client.sync_client import SyncClient
from headrace.client.types import Job, JobState, Run, RunState, Source
from headrace.errors import Conflict
from tests.chaos.campaign.fleet import Fleet

CELLS = 6
JOBS_OF_A_RUN = CELLS + 4
DEPLOY = "ship/deploy"
_PATIENCE_S = 1800.0


def pipeline(number: int, fleet: Fleet, pauses: float) -> bytes:
    """Six cells, one job on the host and one in a container; one after all of these; a deployment: ten jobs.

    `pauses`: seconds that a cell takes.
    """
    retry = "{max: 10, on: [lost, errored]}"
    ledger = f"echo %s > {fleet.ledger.file}"
    afar = f"echo %s | nc -w 30 {fleet.ledger.address} 80 > /dev/null"
    return f"""
name: campaign
stages:
  - name: build
    jobs:
      cell:
        sandbox: bubblewrap
        network: none
        checkout: false
        matrix: {{n: [{", ".join(map(str, range(CELLS)))}]}}
        retry: {retry}
        steps: [{{shell: sh, run: '{_script("cell-$MATRIX_N", ledger, LINES, pauses)}'}}]
      plain:
        sandbox: host
        checkout: false
        retry: {retry}
        steps: [{{shell: sh, run: '{_script("plain", ledger, LINES, pauses / 2)}'}}]
      boxed:
        sandbox: docker
        image: {fleet.image}
        checkout: false
        retry: {retry}
        steps: [{{shell: sh, run: '{_script("boxed", afar, LINES, pauses / 2)}'}}]
  - name: check
    jobs:
      last:
        sandbox: bubblewrap
        network: none
        checkout: false
        retry: {retry}
        steps: [{{shell: sh, run: '{_script("last", ledger, 5, 0)}'}}]
  - name: ship
    environment: place-{number}
    jobs:
      deploy:
        sandbox: bubblewrap
        network: none
        checkout: false
        steps: [{{shell: sh, run: '{_script("deploy", ledger, LINES, pauses)}'}}]
""".encode()


_NOT_THE_COMMAND = {"lost", "errored", "sandbox_killed"}
_STANDS_STILL = {RunState.BLOCKED, RunState.FAILED}
LINES = 40
_STEP = 8
"""Lines between two pauses."""


def _script(name: str, ledger: str, lines: int, pauses: float) -> str:
    """`ledger`: a command that writes a line, `%s`, down."""
    pause = pauses / max(1, lines // _STEP)
    note = ledger % f'"$HEADRACE_RUN_ID {name} $HEADRACE_ATTEMPT {{}}"'
    return (
        f"{note.format('begun')}; i=0; while [ $i -lt {lines} ]; do "
        f'echo "$HEADRACE_RUN_ID {name} $HEADRACE_ATTEMPT line $i {"x" * 60}"; i=$((i+1)); '
        f"[ $((i % {_STEP})) != 0 ] || sleep {pause:.2f}; done; {note.format('ended')}"
    )


def printed(run: int, job: Job, attempt: int) -> bytes:
    """All that an attempt prints that comes to its end."""
    name, lines = name_of(job), 5 if job.name == "last" else LINES
    return "".join(f"{run} {name} {attempt} line {i} {'x' * 60}\n" for i in range(lines)).encode()


def name_of(job: Job) -> str:
    """What a job calls itself in the ledger and in its log."""
    return f"cell-{job.matrix['n']}" if job.name == "cell" else job.name


@dataclass
class People:
    """Those who start runs, look after what stands still, and wait for the ends. One thread a person."""

    fleet: Fleet
    runs: int
    pauses: float
    at_once: int
    started: list[int] = field(default_factory=list)
    ended: dict[int, Run] = field(default_factory=dict)
    retried: dict[int, int] = field(default_factory=dict)
    """By run, how often a person had to ask for its deployment again."""
    refused: list[str] = field(default_factory=list)
    """Calls that failed although their client had tried for all its patience."""
    slowest: float = 0.0
    """Seconds of the slowest call."""

    def __post_init__(self) -> None:
        self._numbers = iter(range(self.runs))
        self._lock = threading.Lock()
        self._known = threading.Barrier(self.at_once + 1)
        # Daemons: when a campaign breaks off, nobody waits for what people still try.
        names = [f"person-{number}" for number in range(self.at_once)]
        self._threads = [threading.Thread(target=self._live, name=name, daemon=True) for name in names]
        self.problems: list[BaseException] = []

    def begin(self) -> None:
        """Returns when each of them was answered once: whoever never was gives up after seconds, for the address may be
        wrong.
        """
        for each in self._threads:
            each.start()
        self._known.wait(60)

    def join(self, seconds: float) -> bool:
        """Waits for the last run; returns whether all have ended."""
        end = time.monotonic() + seconds
        for each in self._threads:
            each.join(max(0.0, end - time.monotonic()))
        return not any(each.is_alive() for each in self._threads)

    @property
    def busy(self) -> bool:
        """Whether some run has not ended."""
        return any(each.is_alive() for each in self._threads)

    def _live(self) -> None:
        try:
            with self.fleet.client() as client:
                client.agents()
                self._known.wait(60)
                while (number := self._next()) is not None:
                    run = self._start(client, number)
                    self.ended[run] = self._see_through(client, run)
        except BaseException as error:  # told by the campaign: a thread has nobody to tell
            self.problems.append(error)

    def _next(self) -> int | None:
        with self._lock:
            return next(self._numbers, None)

    def _start(self, client: SyncClient, number: int) -> int:
        begun = time.monotonic()
        source = Source(f"project-{number % 4}", "0" * 40, url="https://nowhere.invalid/repository", branch="main")
        run = client.create_run(source, pipeline(number, self.fleet, self.pauses))
        self.slowest = max(self.slowest, time.monotonic() - begun)
        self.started.append(run.id)
        return run.id

    def _see_through(self, client: SyncClient, number: int) -> Run:
        """Follows a run to its end. A deployment that was lost, and a job with no luck at all, are retried."""
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            for change in client.watch(number):
                told = change.run or change.snapshot
                if told is not None and told.state in _STANDS_STILL:
                    break
            run = client.run(number)
            if run.state == RunState.PASSED:
                return run
            if run.state in _STANDS_STILL:
                self._ask_again(client, run)
        raise AssertionError(f"run {number} does not end")

    def _ask_again(self, client: SyncClient, run: Run) -> None:
        wanted = [job for job in run.jobs if job.state in {JobState.BLOCKED, JobState.FAILED}]
        for job in wanted:
            if job.state == JobState.FAILED and job.cause not in _NOT_THE_COMMAND:
                raise AssertionError(f"run {run.id}, {job.key}: {job.state}, {job.cause}: {job.sentence}")
            with contextlib.suppress(Conflict):  # too early: it says how many seconds remain
                client.retry(run.id, job=job.key)
                self.retried[run.id] = self.retried.get(run.id, 0) + (job.name == "deploy")
        time.sleep(1.0)  # a run that is blocked changes by people alone
