"""RunService: runs created, shown, watched, canceled, retried."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from coordinator.api.access import Caller
from coordinator.api.errors import rpc, streamed
from coordinator.api.limits import Limits
from coordinator.api.new_runs import INDEXED_MOST, new_run, origin_of
from coordinator.api.request_ids import check_request_id
from coordinator.api.run_messages import job_message, run_message
from coordinator.core.stages import Decision
from coordinator.core.states import RUN_OVER
from coordinator.dispatch.bells import LocalBells, heard_within, run_topic
from coordinator.errors import BadInput, TooMuch, Violation
from coordinator.store.runs import PostgresRuns
from coordinator.store.views import RunView, Views
from headrace.pipeline import PipelineError, expand, load
from headrace.pipeline.plan import Plan
from headrace.v1 import run_pb2 as wire
from headrace.v1 import run_pb2_grpc as stubs

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_RUNS = 200
_POLL_S = 2.0
_COMMENT_MOST = 1_000
_MOST_PLANNING = 32
"""Pipelines read at once: each is held in memory until a thread has time for it."""


class RunService(stubs.RunServiceServicer):
    """`local`: callers are on this machine, so a run may name a path here. `run_url`: where people see a run."""

    def __init__(
        self,
        runs: PostgresRuns,
        views: Views,
        bells: LocalBells,
        *,
        limits: Limits,
        local: bool,
        run_url: str,
    ) -> None:
        self._limits = limits
        self._planning = 0
        self._runs = runs
        self._views = views
        self._bells = bells
        self._local = local
        self._run_url = run_url

    @rpc
    async def Create(  # noqa: N802 - the wire's name
        self, request: wire.CreateRunRequest, context: Any
    ) -> wire.CreateRunResponse:
        """Loads, plans and stores a run; the same request id again makes no second one."""
        del context
        check_request_id(request.request_id)
        self._limits.change(Caller.CLIENT, f"project {request.source.repository}", "this project")
        if (existing := await self._runs.run_of_request(request.request_id)) is not None:
            return wire.CreateRunResponse(run=run_message(await self._views.run(existing)), existed=True)
        self._check_source(request)
        most = self._limits.unfinished_most.runs
        self._limits.room(await self._runs.unfinished(most, repository=request.source.repository))
        # A hostile megabyte takes seconds to load: heartbeats must not wait for it.
        plan = await self._planned(request)
        run_id, job_ids = await self._runs.allocate(len(plan.jobs))
        new = new_run(request, plan, run_id, job_ids, f"{self._run_url}/runs/{run_id}" if self._run_url else "")
        made = await self._runs.create(request.request_id, new)
        return wire.CreateRunResponse(run=run_message(await self._views.run(made)), existed=made != run_id)

    async def _planned(self, request: wire.CreateRunRequest) -> Plan:
        if self._planning >= _MOST_PLANNING:
            raise TooMuch(f"{_MOST_PLANNING} pipelines are being read here: come again in a second")
        self._planning += 1
        try:
            return await asyncio.to_thread(_plan, request)
        finally:
            self._planning -= 1

    def _check_source(self, request: wire.CreateRunRequest) -> None:
        source = request.source
        if not source.repository or source.WhichOneof("fetch") is None:
            raise BadInput("a run names its repository and where to fetch it from")
        if len(source.repository.encode()) > INDEXED_MOST:
            raise BadInput(f"the repository's address has more than {INDEXED_MOST:,} bytes: name a shorter one")
        if not _COMMIT.fullmatch(source.commit):
            raise BadInput("a run names its commit by its full hash")
        if source.bundle_sha256 and not _DIGEST.fullmatch(source.bundle_sha256):
            raise BadInput("a run names its bundle by the bundle's SHA-256, in lower-case hexadecimal")
        is_here = source.path or source.own_code or source.url.strip().lower().startswith("file://")
        if is_here and not self._local:
            raise BadInput(
                "a path can only be built by a coordinator on the same machine: hand in a bundle, or name a URL"
            )

    @rpc
    async def Get(self, request: wire.GetRunRequest, context: Any) -> wire.Run:  # noqa: N802
        """A run with its stages, jobs and attempts."""
        del context
        return run_message(await self._views.run(request.run_id, request.repository))

    @rpc
    async def List(  # noqa: N802
        self, request: wire.ListRunsRequest, context: Any
    ) -> wire.ListRunsResponse:
        """Runs, newest first, without their jobs."""
        del context
        limit = min(request.limit or 20, _MOST_RUNS)
        views = await self._views.runs(request.repository, request.before, limit)
        return wire.ListRunsResponse(runs=[run_message(view) for view in views])

    @streamed
    async def Watch(  # noqa: N802
        self, request: wire.WatchRunRequest, context: Any
    ) -> AsyncIterator[wire.RunChange]:
        """A snapshot, then every change until the run has ended."""
        del context
        seen = request.after
        with self._limits.stream(Caller.CLIENT), self._bells.listening(run_topic(request.run_id)) as bell:
            while True:
                view = await self._views.run_since(request.run_id, seen)
                for change in _changes(view, seen):
                    yield change
                seen = max(seen, view.run["sequence"])
                if view.run["state"] in RUN_OVER:
                    return
                await heard_within(bell, _POLL_S)

    @rpc
    async def Cancel(self, request: wire.CancelRunRequest, context: Any) -> wire.Run:  # noqa: N802
        """Cancels a run; again, with another request id: without grace."""
        del context
        check_request_id(request.request_id)
        self._limits.change(Caller.CLIENT, f"run {request.run_id}", "this run")
        sentence = request.sentence[:500] or "canceled by a person"
        await self._runs.cancel(request.request_id, request.run_id, sentence)
        return run_message(await self._views.run(request.run_id))

    @rpc
    async def Retry(self, request: wire.RetryRunRequest, context: Any) -> wire.Run:  # noqa: N802
        """Runs a job, or all that did not pass, again."""
        del context
        check_request_id(request.request_id)
        self._limits.change(Caller.CLIENT, f"run {request.run_id}", "this run")
        if not await self._runs.retried(request.request_id):
            most = self._limits.unfinished_most.runs
            self._limits.room(await self._runs.unfinished(most, run_id=request.run_id))
        await self._runs.retry(request.request_id, request.run_id, request.job)
        return run_message(await self._views.run(request.run_id))

    @rpc
    async def Approve(self, request: wire.ApproveRunRequest, context: Any) -> wire.Run:  # noqa: N802
        """Records a person's decision about a stage that waits for an approval."""
        del context
        check_request_id(request.request_id)
        # Until there are identities, the name of the token is the person.
        comment = request.comment[:_COMMENT_MOST].replace("\0", "")
        decision = Decision(Caller.CLIENT.value, not request.reject, comment)
        await self._runs.decide(request.request_id, request.run_id, request.stage, decision)
        return run_message(await self._views.run(request.run_id))


def _plan(request: wire.CreateRunRequest) -> Plan:
    """The plan of the pipeline text. Raises BadInput with every mistake and its position."""
    origin = origin_of(request)
    try:
        pipeline = load(origin.text, origin.file, origin.read)
        return expand(pipeline, origin.event, only=origin.only, sandbox=origin.sandbox)
    except PipelineError as error:
        violations = tuple(Violation(f"{each.file}:{each.line}:{each.column}", each.message) for each in error.problems)
        raise BadInput(str(error), violations) from error


def _changes(view: RunView, seen: int) -> list[wire.RunChange]:
    """What is new behind `seen`. Each change bears the number up to which everything has been sent with it, so
    that whoever is cut off in between loses nothing by going on behind it."""
    run = run_message(view)
    if not seen:
        return [wire.RunChange(sequence=run.sequence, snapshot=run)]
    attempts = view.attempts or {}
    found = []
    for job in view.jobs:
        message = job_message(job, attempts.get(job["id"], ()), expanded=job["id"] in view.expanded)
        found.append((job["sequence"], wire.RunChange(job=message)))
    if view.run["run_sequence"] > seen:
        del run.jobs[:]
        found.append((view.run["run_sequence"], wire.RunChange(run=run)))
    # The run first where both changed at once: it tells of the stages that its jobs are numbered by.
    found.sort(key=lambda each: (each[0], each[1].HasField("job")))
    for index, (number, change) in enumerate(found):
        last = index + 1 == len(found) or found[index + 1][0] > number
        change.sequence = number if last else number - 1
    return [change for _, change in found]
