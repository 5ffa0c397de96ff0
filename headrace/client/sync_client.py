"""The blocking client."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Self

from headrace.client import requests
from headrace.client.channel import Connection
from headrace.client.drive_sync import SyncDriver
from headrace.client.pace import RetryPolicy
from headrace.client.types import Agent, Artifact, LogRecord, Pool, Run, RunChange, Source


class SyncClient:
    """Speaks with a coordinator, blocking. Use it as a `with`; one serves any number of threads.

    `url`: `HOST:PORT`, or several separated by commas; plaintext goes to loopback alone, unless `insecure`. Time
    and randomness may be passed in. Every method raises the errors of `headrace.errors`, each one sentence; what
    may be tried again is, for `policy.patience` seconds, under the same request id.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        *,
        insecure: bool = False,
        root_certificates: bytes | None = None,
        policy: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        connection = Connection(
            url, token, insecure, root_certificates, policy or RetryPolicy(), clock, rng or random.SystemRandom()
        )
        self._driver = SyncDriver(connection, sleep)
        self._requests = requests.Requests(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every call and connection. May be repeated."""
        self._driver.close()

    def create_run(
        self,
        source: Source,
        pipeline_text: bytes,
        *,
        pipeline_file: str = "headrace.yml",
        event: str = "manual",
        parameters: Mapping[str, str] | None = None,
        only_job: str = "",
        sandbox: str = "",
        included: Mapping[str, bytes] | None = None,
        request_id: str = "",
    ) -> Run:
        """Starts a run, once for one `request_id` (made if left out). BadInput names every mistake of the file.

        `included`: the files that the pipeline includes, by their paths from the root of the repository.
        """
        return self._driver.perform(
            self._requests.create_run(
                source,
                pipeline_text,
                pipeline_file=pipeline_file,
                event=event,
                parameters=parameters or {},
                only_job=only_job,
                sandbox=sandbox,
                included=included or {},
                request_id=request_id,
            )
        )

    def run(self, run_id: int = 0, *, repository: str = "") -> Run:
        """A run with its jobs; 0: the newest of `repository`."""
        return self._driver.perform(self._requests.run(run_id, repository))

    def runs(self, *, repository: str = "", before: int = 0, limit: int = 20) -> list[Run]:
        """Runs without their jobs, newest first, at most 200; `before`: only those with a smaller id."""
        return self._driver.perform(self._requests.runs(repository, before, limit))

    def watch(self, run_id: int, *, after: int = 0) -> Generator[RunChange, None, None]:
        """A snapshot (or, with `after`, what came behind that change), then every change until the run ends."""
        return self._driver.iterate(self._requests.watch(run_id, after))

    def tail(
        self,
        run_id: int,
        job: str,
        *,
        attempt: int = 0,
        stream: str = "main",
        offset: int = 0,
        follow: bool = True,
    ) -> Generator[LogRecord, None, None]:
        """The log of a job (attempt 0: the newest) from byte `offset` on; the last record is a `LogEnd`."""
        return self._driver.iterate(self._requests.tail(run_id, job, attempt, stream, offset, follow=follow))

    def cancel(self, run_id: int, *, reason: str = "", request_id: str = "") -> Run:
        """Cancels a run with grace; a second cancel, under another request id, kills."""
        return self._driver.perform(self._requests.cancel(run_id, reason, request_id))

    def retry(self, run_id: int, *, job: str = "", request_id: str = "") -> Run:
        """Runs a job and what depends on it again; without `job`, all that did not pass."""
        return self._driver.perform(self._requests.retry(run_id, job, request_id))

    def approve(
        self, run_id: int, stage: str = "", *, reject: bool = False, comment: str = "", request_id: str = ""
    ) -> Run:
        """Approves (or rejects) a stage that waits for it; empty: the one that waits. One person counts once.

        Raises NotFound, and Conflict where nothing waits or the person has decided already.
        """
        return self._driver.perform(self._requests.approve(run_id, stage, comment, request_id, reject=reject))

    def artifacts(self, run_id: int) -> list[Artifact]:
        """The artifacts of a run, the newest attempt's of each name."""
        return self._driver.perform(self._requests.artifacts(run_id))

    def download(self, run_id: int, name: str, folder: Path) -> list[Path]:
        """Writes an artifact's files below `folder`, each checked by length and digest."""
        return self._driver.perform(self._requests.download(run_id, name, folder))

    def send_bundle(self, path: Path) -> str:
        """Hands a git bundle in and returns its SHA-256, for `Source.bundle_sha256`."""
        digest, size = requests.digest_of(path)
        return self._driver.perform(self._requests.send_bundle(digest, size, path))

    def agents(self) -> list[Agent]:
        """All agents, also those that are gone."""
        return self._driver.perform(self._requests.agents())

    def drain(self, agent: str, *, undo: bool = False, request_id: str = "") -> Agent:
        """Lets an agent finish what it has and take nothing new, or undoes that."""
        return self._driver.perform(self._requests.drain(agent, request_id, undo=undo))

    def pools(self) -> list[Pool]:
        """All pools."""
        return self._driver.perform(self._requests.pools())

    def pause(self, pool: str, *, undo: bool = False, request_id: str = "") -> Pool:
        """Lets a pool start nothing more, or undoes that."""
        return self._driver.perform(self._requests.pause(pool, request_id, undo=undo))
