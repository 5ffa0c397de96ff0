"""Dynamic pipelines on the wire: a fragment becomes jobs of its run, or problems with their positions."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Protocol

from coordinator.api.new_runs import Planned, new_groups, new_jobs, new_stages, origin_of
from coordinator.errors import BadInput, Conflict, StaleToken
from coordinator.store.extending import Basis, Kept, Overtaken
from coordinator.store.new_rows import NewFragment
from headrace.pipeline import PipelineError, fragments
from headrace.pipeline.fragments import FILE, Extension, Fragment
from headrace.pipeline.problems import Place
from headrace.v1 import agent_pb2 as wire
from headrace.v1 import run_pb2

_START = Place(1, 1)
_MOST_STEP = 1_000


class ExtensionStore(Protocol):
    """What is wanted of a store: see `coordinator.store.extending.PostgresExtensions`."""

    async def basis(self, attempt_id: int, token: bytes) -> Basis:
        """What an extension is planned by."""
        ...

    async def allocate(self, jobs: int) -> Sequence[int]:
        """Ids for jobs."""
        ...

    async def extend(self, run_id: int, attempt_id: int, token: bytes, new: NewFragment) -> None:
        """Adds a fragment."""
        ...


class Extensions:
    """Lets steps extend their runs. `run_url`: where people see runs; empty: nowhere."""

    def __init__(self, store: ExtensionStore, *, run_url: str) -> None:
        self._store = store
        self._run_url = run_url

    async def extend(self, request: wire.ExtendRequest) -> wire.ExtendResponse:
        """Plans without a lock, and stores what was planned if nothing was added meanwhile; else from the beginning.

        Whoever is overtaken was overtaken by one that got through: that ends. Raises StaleToken, TooMuch, StoreDown.
        """
        if request.step >= _MOST_STEP:
            raise BadInput(f"a job has no step {request.step}")
        while True:
            basis = await self._store.basis(request.attempt_id, request.token)
            if (answer := _answered(basis, request)) is not None:
                return answer
            try:
                # A hostile megabyte takes seconds to load: heartbeats must not wait for it.
                extension = await asyncio.to_thread(_planned, basis, request.text)
                return await self._added(basis, extension, request)
            except PipelineError as error:
                return wire.ExtendResponse(problems=map(str, error.problems))
            except Overtaken:
                continue

    async def _added(self, basis: Basis, extension: Extension, request: wire.ExtendRequest) -> wire.ExtendResponse:
        jobs = [job for job in extension.plan.jobs if job.key in extension.jobs]
        ids = await self._store.allocate(len(jobs))
        url = f"{self._run_url}/runs/{basis.run_id}" if self._run_url else ""
        planned = Planned(asked_of(basis), extension.plan, basis.run_id, url, basis.trusted)
        try:
            new = NewFragment(
                revision=basis.revision,
                step=request.step,
                number=len(basis.fragments) + 1,
                sha256=hashlib.sha256(request.text).digest(),
                text=request.text,
                stages=new_stages(planned),
                new_stages=extension.stages,
                jobs=new_jobs(planned, jobs, ids, depth=basis.depth + 1),
                groups=new_groups(extension.plan, jobs),
            )
            await self._store.extend(basis.run_id, request.attempt_id, request.token, new)
        except StaleToken:
            raise
        except (BadInput, Conflict) as error:
            return _refused(str(error), extension.place)
        return wire.ExtendResponse(added=len(jobs))


def asked_of(basis: Basis) -> run_pb2.CreateRunRequest:
    """The request that a run was made by."""
    asked = run_pb2.CreateRunRequest.FromString(basis.asked)
    asked.pipeline_text = basis.text
    return asked


def _planned(basis: Basis, text: bytes) -> Extension:
    before = [fragment_of(each) for each in basis.fragments]
    job = basis.job
    return fragments.extend(origin_of(asked_of(basis)), before, text, job, basis.lists)


def fragment_of(kept: Kept) -> Fragment:
    """A fragment as the language takes it."""
    return Fragment(kept.text, kept.job, kept.pool)


def _answered(basis: Basis, request: wire.ExtendRequest) -> wire.ExtendResponse | None:
    """The answer to what needs no planning; None: there is none yet."""
    for each in basis.fragments:
        if (each.job_id, each.step) == (basis.job_id, request.step):
            if each.sha256 == hashlib.sha256(request.text).digest():
                return wire.ExtendResponse(added=each.added, existed=True)
            return _refused("this step has extended the run before, with other text; a retry has to write the same")
    if basis.depth >= fragments.MAX_DEPTH:
        return _refused(f"this job is {basis.depth} additions away from the file, and no job may add further ones")
    total = len(request.text) + sum(len(each.text) for each in basis.fragments)
    if total > fragments.MAX_BYTES:
        return _refused(f"the fragments of a run have at most {fragments.MAX_BYTES:,} bytes together, not {total:,}")
    return None


def _refused(sentence: str, place: Place = _START) -> wire.ExtendResponse:
    return wire.ExtendResponse(problems=[f"{FILE}:{place.line}:{place.column}: {sentence}"])
