"""Jobs whose every line is known, and what became of them: for tests in which machines and networks fail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from headrace.client import SyncClient
from headrace.client.log_records import LogBytes
from headrace.client.types import Attempt, Job, Source
from tests.harness.waiting import wait_for
from tests.integration.coordinator.processes import Daemon, token

SHORT = {"HEADRACE_LEASE_S": "6", "HEADRACE_HEARTBEAT_S": "1"}
"""Of a coordinator: what takes longer than a lease is over within seconds."""
LEASE_S = 6.0
SOURCE = Source("https://example.org/r", "a" * 40, url="https://example.org/r")
"""Of jobs without a checkout."""
BUBBLEWRAP = "sandbox: bubblewrap, network: none"


@dataclass(frozen=True)
class Counting:
    """A job that says `line 0`, `line 1`, … ten times a second in a sandbox, and nothing else.

    `again`: so many lines where it is tried again. `pool`: of one agent, where it matters which one it is. `keys`: more
    of the job, as YAML in braces has it. `first`: a command before it counts.
    """

    name: str
    lines: int
    pool: str = "default"
    again: int = 20
    keys: str = BUBBLEWRAP
    first: str = ":"

    def text(self, number: int = 1) -> bytes:
        """What the log of its attempt with this number must be."""
        return b"".join(b"line %d\n" % each for each in range(self.lines if number == 1 else self.again))

    @property
    def job(self) -> str:
        """For a stage's `jobs`."""
        lines = f"n={self.lines}; [ $HEADRACE_ATTEMPT = 1 ] || n={self.again}"
        script = f"{self.first}; {lines}; i=0; while [ $i -lt $n ]; do echo line $i; i=$((i+1)); sleep 0.1; done"
        return f"{self.name}: {{{self.keys}, checkout: false, pool: {self.pool}, steps: [{{run: '{script}'}}]}}"


class User:
    """Somebody with the SDK. `addresses`: of replicas; left out: of the one that has given the token."""

    def __init__(self, of: Daemon, addresses: str = "") -> None:
        self._client = SyncClient(addresses or of.facts["address"], token(of, "client"), insecure=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def begin(self, work: Iterable[Counting], stage: str = "name: a") -> int:
        """Starts a run of these jobs, all of one stage."""
        return self.start(f"name: counting\nstages: [{{{stage}, jobs: {{{', '.join(each.job for each in work)}}}}}]\n")

    def start(self, pipeline: str) -> int:
        """Starts a run; returns its number."""
        return self._client.create_run(SOURCE, pipeline.encode()).id

    def cancel(self, run: int) -> None:
        """Ends it."""
        self._client.cancel(run)

    def pause(self, pool: str, *, undo: bool = False) -> None:
        """Nothing of the pool is given out (or it is again)."""
        self._client.pause(pool, undo=undo)

    def state(self, run: int) -> str:
        """Of a run."""
        return str(self._client.run(run).state)

    def job(self, run: int, key: str) -> Job:
        """One of its jobs."""
        return next(each for each in self._client.run(run).jobs if each.key == key)

    def attempts(self, run: int, key: str) -> Sequence[Attempt]:
        """Those of a job that started, oldest first."""
        return self.job(run, key).attempts

    def states(self, run: int, key: str) -> list[str]:
        """What a job's attempts came to, or are at."""
        return [str(each.state) for each in self.attempts(run, key)]

    def log(self, run: int, key: str, attempt: int = 0) -> bytes:
        """What the job printed, as far as it has come (attempt 0: the newest), and that it came without a gap."""
        text, at = b"", 0
        for each in self._client.tail(run, key, attempt=attempt, follow=False):
            if isinstance(each, LogBytes):
                assert each.offset == at, f"byte {at} of the log follows byte {each.offset}"
                at += len(each.data)
                text += b"" if each.ours else each.data
        return text

    def said(self, run: int, key: str, attempt: int = 0) -> str:
        """The whole log of an attempt, our own words too."""
        tail = self._client.tail(run, key, attempt=attempt, follow=False)
        return b"".join(each.data for each in tail if isinstance(each, LogBytes)).decode()

    def until_it_writes(self, run: int, *work: Counting, more: int = 3) -> None:
        """Waits for so many more lines of each job's newest attempt."""
        counts = {each.name: self.log(run, each.name).count(b"\n") for each in work if self.attempts(run, each.name)}

        def written(each: Counting) -> bool:
            known = self.attempts(run, each.name)
            return bool(known) and self.log(run, each.name).count(b"\n") >= counts.get(each.name, 0) + more

        wait_for(lambda: all(written(each) for each in work), f"lines of {[each.name for each in work]}", 60)

    def until_over(self, run: int, seconds: float = 90) -> None:
        """Waits for the end of a run."""
        wait_for(lambda: self._client.run(run).ended_at, f"the end of run {run}", seconds)

    def judge(self, run: int, job: Counting, attempts: list[str]) -> None:
        """Its attempts came to this; the log of the one that passed is whole, and of the others is there what they came
        to, in order: not a byte is lost or doubled.
        """
        found = self.attempts(run, job.name)
        assert [each.state for each in found] == attempts, found
        for each in found:
            text, wanted = self.log(run, job.name, each.number), job.text(each.number)
            if each.state == "passed":
                assert text == wanted, f"the log of {job.name}: {len(text)} bytes of {len(wanted)}"
            else:
                assert wanted.startswith(text), f"the log of attempt {each.number} of {job.name}"
