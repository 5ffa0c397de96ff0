"""A fake of the other side: the services a client speaks to, over a real gRPC connection, with faults on demand.

It keeps runs, logs and artifacts in memory, serves artifacts over a real HTTP server, and does what its script
says when a run is created. `faults` cut or refuse calls; `seen` holds every request in order.
"""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any, Self

import grpc
import zstandard

from headrace.v1 import (
    blob_pb2,
    blob_pb2_grpc,
    common_pb2,
    fleet_pb2,
    fleet_pb2_grpc,
    log_pb2,
    log_pb2_grpc,
    run_pb2,
    run_pb2_grpc,
)
from tests.harness.fake_blob_store import blob_store
from tests.harness.fake_services import Blobs, Fleet, Logs
from tests.harness.faults import Fault, refuse

TOKEN = "client-token"


@dataclass
class Log:
    """The records of one attempt's stream."""

    records: list[log_pb2.Record] = field(default_factory=list)
    offset: int = 0
    complete: bool = False


class FakeCoordinator:
    """Start it as a context manager; `address` and `TOKEN` are what a client needs."""

    def __init__(self, script: Callable[[FakeCoordinator, int], None] | None = None, port: int = 0) -> None:
        self.script = script
        self.seen: list[tuple[str, Any]] = []
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.runs: dict[int, run_pb2.Run] = {}
        self.changes: defaultdict[int, list[run_pb2.RunChange]] = defaultdict(list)
        self.logs: defaultdict[tuple[int, str, int], Log] = defaultdict(Log)
        self.artifacts: defaultdict[int, dict[str, blob_pb2.Artifact]] = defaultdict(dict)
        self.blobs: dict[str, bytes] = {}
        self.signature = 0
        self.expired: set[int] = set()
        self.agents: dict[str, fleet_pb2.Agent] = {}
        self.pools = {"default": fleet_pb2.Pool(name="default")}
        self.moved = threading.Condition(threading.RLock())
        self.made: dict[str, int] = {}
        self.stopped = False
        self._port = port
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self.server = grpc.server(
            ThreadPoolExecutor(32), options=[("grpc.http2.min_ping_interval_without_data_ms", 10_000)]
        )
        run_pb2_grpc.add_RunServiceServicer_to_server(Runs(self), self.server)
        log_pb2_grpc.add_LogServiceServicer_to_server(Logs(self), self.server)
        blob_pb2_grpc.add_BlobServiceServicer_to_server(Blobs(self), self.server)
        fleet_pb2_grpc.add_FleetServiceServicer_to_server(Fleet(self), self.server)
        self._port = self.server.add_insecure_port(f"127.0.0.1:{self._port}")
        self.server.start()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), blob_store(self.blobs, self.expired))
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.moved:
            self.stopped = True
            self.moved.notify_all()
        self.server.stop(0).wait()
        self.http.shutdown()
        self.http.server_close()
        for thread in self._threads:
            thread.join(10)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def requests(self, method: str) -> list[Any]:
        """What was asked of one method, in order."""
        return [request for name, request in self.seen if name == method]

    def create(self, request: run_pb2.CreateRunRequest) -> run_pb2.Run:
        """Makes a run, once for a request id, and starts the script on it."""
        with self.moved:
            if request.request_id in self.made:
                return self.runs[self.made[request.request_id]]
            run = run_pb2.Run(
                id=len(self.runs) + 1,
                project="demo",
                pipeline="demo",
                source=request.source,
                event=request.event,
                state=common_pb2.RUN_STATE_PENDING,
                created_ms=1_700_000_000_000,
                parameters=request.parameters,
                sequence=1,
            )
            self.runs[run.id] = run
            self.made[request.request_id] = run.id
        if self.script is not None:
            thread = threading.Thread(target=self.script, args=(self, run.id), daemon=True)
            self._threads.append(thread)
            thread.start()
        return run

    def set_run(self, run_id: int, **values: Any) -> None:
        """Changes a run, as one change of its history."""
        with self.moved:
            run = self.runs[run_id]
            for name, value in values.items():
                setattr(run, name, value)
            self._changed(run, run=_without_jobs(run))

    def set_job(self, run_id: int, key: str, **values: Any) -> None:
        """Makes or changes a job, as one change of the run's history."""
        with self.moved:
            run = self.runs[run_id]
            job = next((each for each in run.jobs if each.key == key), None)
            if job is None:
                job = run.jobs.add(id=100 + len(run.jobs), key=key)
            for name, value in values.items():
                if name == "attempts":
                    del job.attempts[:]
                    job.attempts.extend(value)
                else:
                    setattr(job, name, value)
            self._changed(run, job=job)

    def ask(self, run_id: int, stage: str, sentence: str = "waits for an approval") -> None:
        """Blocks the run on an approval of a stage, as one change of its history."""
        with self.moved:
            run = self.runs[run_id]
            found = next(each for each in run.stages if each.name == stage)
            found.approval.CopyFrom(run_pb2.Approval(state="asked", sentence=sentence, count=1, expires_ms=1))
            run.state = common_pb2.RUN_STATE_BLOCKED
            self._changed(run, run=_without_jobs(run))

    def decide(self, request: run_pb2.ApproveRunRequest, context: grpc.ServicerContext) -> run_pb2.Run:
        """Records a person's decision about the stage that waits."""
        with self.moved:
            run = self.runs[request.run_id]
            asked = [each for each in run.stages if each.approval.state == "asked"]
            found = [each for each in asked if request.stage in {"", each.name}]
            if not found:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"run {run.id} waits for no approval")
            approval = found[0].approval
            approval.decisions.add(person="ana", approved=not request.reject, comment=request.comment)
            approval.state = "rejected" if request.reject else "open"
            approval.sentence = f"{'rejected' if request.reject else 'approved'} by ana"
            run.state = common_pb2.RUN_STATE_RUNNING
            self._changed(run, run=_without_jobs(run))
            return run

    def _changed(self, run: run_pb2.Run, /, **what: Any) -> None:
        run.sequence += 1
        change = run_pb2.RunChange(sequence=run.sequence, **what)
        self.changes[run.id].append(change)
        self.moved.notify_all()

    def write(self, run_id: int, job: str, data: bytes, number: int = 1, section: int = 1) -> None:
        """Appends a frame to a log."""
        with self.moved:
            log = self.logs[run_id, job, number]
            frame = log_pb2.Frame(raw_length=len(data), zstd=zstandard.compress(data), section=section)
            record = log_pb2.Record(
                sequence=len(log.records) + 1, offset=log.offset, time_ms=1_700_000_000_000, frame=frame
            )
            log.records.append(record)
            log.offset += len(data)
            self.moved.notify_all()

    def open_section(self, run_id: int, job: str, kind: str, title: str, step: int = -1, number: int = 1) -> None:
        """Opens a section of a log."""
        with self.moved:
            log = self.logs[run_id, job, number]
            opened = log_pb2.SectionOpened(section=1, kind=kind, title=title, step=step)
            log.records.append(
                log_pb2.Record(sequence=len(log.records) + 1, offset=log.offset, time_ms=1, opened=opened)
            )
            self.moved.notify_all()

    def seal(self, run_id: int, job: str, number: int = 1) -> None:
        """No more will come."""
        with self.moved:
            self.logs[run_id, job, number].complete = True
            self.moved.notify_all()

    def keep(self, run_id: int, name: str, files: dict[str, bytes], job: str = "build") -> None:
        """Publishes an artifact."""
        found = blob_pb2.Artifact(name=name, job=job, published_ms=1_700_000_000_000)
        setattr(found, "try", 1)
        for path, data in files.items():
            digest = hashlib.sha256(data).hexdigest()
            self.blobs[digest] = data
            found.files.add(path=path, sha256=digest, size=len(data))
        self.artifacts[run_id][name] = found

    def transfer(self, sha256: str, size: int, method: str) -> common_pb2.Transfer:
        """A signed request; the signature is a number that a test can let grow old."""
        self.signature += 1
        url = f"http://127.0.0.1:{self.http.server_port}/{sha256}?signature={self.signature}"
        return common_pb2.Transfer(sha256=sha256, size=size, method=method, url=url, headers={"x-signed": "yes"})

    def wait_for(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        """Waits until something moved that makes it true."""
        with self.moved:
            assert self.moved.wait_for(lambda: condition() or self.stopped, seconds), "it did not come"

    def admit(self, method: str, request: Any, context: grpc.ServicerContext) -> Fault | None:
        """Notes the request, checks the token, and does the next fault of this method, if there is one."""
        with self.moved:
            self.seen.append((method, request))
            fault = self.faults[method].popleft() if self.faults[method] else None
            self.moved.notify_all()
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {TOKEN}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is wrong")
        if fault is not None and not fault.after_messages and not fault.done_all_the_same:
            refuse(context, fault)
        return fault


def _without_jobs(run: run_pb2.Run) -> run_pb2.Run:
    copy = run_pb2.Run()
    copy.CopyFrom(run)
    del copy.jobs[:]
    if not any(stage.HasField("approval") for stage in copy.stages):
        del copy.stages[:]
    return copy


ENDED = {common_pb2.RUN_STATE_PASSED, common_pb2.RUN_STATE_FAILED, common_pb2.RUN_STATE_CANCELED}


class Runs(run_pb2_grpc.RunServiceServicer):
    def __init__(self, fake: FakeCoordinator) -> None:
        self.fake = fake

    def Create(self, request, context):  # noqa: N802
        fault = self.fake.admit("Create", request, context)
        run = self.fake.create(request)
        if fault is not None:
            refuse(context, fault)
        return run_pb2.CreateRunResponse(run=run)

    def _run(self, run_id, context):
        if run_id not in self.fake.runs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no run {run_id}")
        return self.fake.runs[run_id]

    def Get(self, request, context):  # noqa: N802
        self.fake.admit("Get", request, context)
        mine = [r.id for r in self.fake.runs.values() if r.source.repository == request.repository]
        if not request.run_id and not mine:
            context.abort(grpc.StatusCode.NOT_FOUND, f"{request.repository} has no run yet")
        return self._run(request.run_id or max(mine), context)

    def List(self, request, context):  # noqa: N802
        self.fake.admit("List", request, context)
        runs = sorted(self.fake.runs.values(), key=lambda run: -run.id)
        return run_pb2.ListRunsResponse(
            runs=[
                _without_jobs(run)
                for run in runs
                if request.repository in {"", run.source.repository} and (not request.before or run.id < request.before)
            ][: request.limit or 20]
        )

    def Watch(self, request, context) -> Iterator[run_pb2.RunChange]:  # noqa: N802
        fault = self.fake.admit("Watch", request, context)
        run = self._run(request.run_id, context)
        sent, at = 0, request.after
        while not self.fake.stopped and context.is_active():
            with self.fake.moved:
                if not at:
                    batch = [run_pb2.RunChange(sequence=run.sequence, snapshot=run)]
                else:
                    batch = [each for each in self.fake.changes[run.id] if each.sequence > at]
                over = run.state in ENDED
                if not batch and not over:
                    self.fake.moved.wait(1)
            for change in batch:
                if fault is not None and sent == fault.after_messages:
                    refuse(context, fault)
                yield change
                sent, at = sent + 1, change.sequence
            if over and at >= run.sequence:
                return

    def Cancel(self, request, context):  # noqa: N802
        self.fake.admit("Cancel", request, context)
        return self._run(request.run_id, context)

    def Retry(self, request, context):  # noqa: N802
        self.fake.admit("Retry", request, context)
        run = self._run(request.run_id, context)
        if request.job and request.job not in {job.key for job in run.jobs}:
            context.abort(grpc.StatusCode.NOT_FOUND, f"run {run.id} has no job {request.job}")
        return run

    def Approve(self, request, context):  # noqa: N802
        fault = self.fake.admit("Approve", request, context)
        self._run(request.run_id, context)
        run = self.fake.decide(request, context)
        if fault is not None:
            refuse(context, fault)
        return run
