"""Artifacts: the files that a job hands on, from its workspace to the store and back into another's.

Who signs the requests is somebody else: the functions here take an async callable that asks for transfers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from agent.problems import Cause, JobProblem
from agent.workspace.transfers import Courier, Stale, Transfer, TransferFailed
from agent.workspace.tree import Bounds, Occupied, Owner, Tree, TreeProblem, components
from headrace.pipeline.globs import BadPattern, Patterns
from headrace.pipeline.plan import ArtifactSpec, IfEmpty, When

BATCH = 100
"""Files for which signed requests are asked at once: they are good for minutes only."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """A file of an artifact: path relative to the workspace, SHA-256 in hex, size in bytes."""

    path: str
    sha256: str
    size: int
    executable: bool


@dataclass(frozen=True, slots=True)
class Collected:
    """What an artifact's globs found; `passed_over` matched but are links, FIFOs and the like (at most 20)."""

    files: tuple[ArtifactFile, ...]
    passed_over: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large artifacts may be, in bytes."""

    file: int = 20 << 30
    all: int = 50 << 30


class Ending(StrEnum):
    """How the steps of a job ended, as far as artifacts care."""

    PASSED = "passed"
    FAILED = "failed"


Ask = Callable[[Sequence[ArtifactFile]], Awaitable[Sequence[Transfer]]]
"""Asks for signed requests, one for each file, in order."""


def is_kept(when: When, ending: Ending) -> bool:
    """Whether an artifact is kept after this ending."""
    return when is When.ALWAYS or when.value == ending.value


def empty_sentence(spec: ArtifactSpec, collected: Collected) -> str:
    """What to tell of an artifact without a single file; empty if it has one."""
    if collected.files:
        return ""
    only = f" but {_quoted(collected.passed_over[:3])}, no regular file" if collected.passed_over else ""
    return f"Artifact `{spec.name}` is empty: {_quoted(spec.paths)} matched no file{only}."


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def check_empty(spec: ArtifactSpec, collected: Collected) -> str:
    """Raises `JobProblem` for an empty artifact whose job should fail then; else returns the warning, if any."""
    sentence = empty_sentence(spec, collected)
    if sentence and spec.if_empty is IfEmpty.FAIL:
        raise JobProblem(Cause.ARTIFACT_EMPTY, sentence)
    return sentence


async def collect(
    tree: Tree,
    spec: ArtifactSpec,
    clock: Callable[[], float],
    *,
    bounds: Bounds | None = None,
    sizes: Sizes | None = None,
) -> Collected:
    """Finds the artifact's files and reads each once for its digest. Raises `JobProblem` beyond a bound."""
    return await _in_thread(lambda: _collect(tree, spec, clock, bounds or Bounds(), sizes or Sizes()))


def _collect(tree: Tree, spec: ArtifactSpec, clock: Callable[[], float], bounds: Bounds, sizes: Sizes) -> Collected:
    try:
        found = tree.glob(Patterns(spec.paths), bounds, clock)
        left = sizes.all
        files = []
        for path in found.files:
            try:
                path.encode()
            except UnicodeEncodeError as error:
                shown = path.encode(errors="backslashreplace").decode()
                raise TreeProblem(f"The file name {shown} is not UTF-8.") from error
            files.append(_digest(tree, path, min(sizes.file, left)))
            left -= files[-1].size
    except (TreeProblem, BadPattern) as error:
        raise JobProblem(Cause.REFUSED, f"Artifact {spec.name} cannot be kept: {error}") from error
    return Collected(tuple(files), found.passed_over)


def _digest(tree: Tree, path: str, limit: int) -> ArtifactFile:
    digest, size = hashlib.sha256(), 0
    with tree.file(path) as descriptor:
        executable = bool(os.fstat(descriptor).st_mode & stat.S_IXUSR)
    for piece in tree.chunks(path, limit):
        digest.update(piece)
        size += len(piece)
    return ArtifactFile(path, digest.hexdigest(), size, executable)


@dataclass(frozen=True, slots=True)
class _FromTree:
    """A file of the tree as the source of an upload."""

    tree: Tree
    file: ArtifactFile

    def chunks(self) -> Iterable[bytes]:
        return self.tree.chunks(self.file.path, self.file.size)


class _IntoFile:
    """An open file as the sink of a download."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def rewind(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)

    def write(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            view = view[os.write(self._descriptor, view) :]


async def upload_files(courier: Courier, tree: Tree, files: Sequence[ArtifactFile], ask: Ask) -> None:
    """Uploads the files, each distinct content once. Raises `JobProblem` (errored) when that cannot be done."""
    distinct = list({file.sha256: file for file in files}.values())

    async def one(file: ArtifactFile, transfer: Transfer) -> None:
        source = _FromTree(tree, file)
        try:
            await courier.upload(source, transfer)
        except Stale:
            (renewed,) = await ask([file])
            await courier.upload(source, renewed)

    with _told("uploaded"):
        for batch in _batches(distinct):
            await _side_by_side(one(f, t) for f, t in zip(batch, await ask(batch), strict=True))


async def download_files(
    courier: Courier, tree: Tree, files: Sequence[ArtifactFile], ask: Ask, *, into: str, owner: Owner | None
) -> None:
    """Places the files below the folder `into` of the tree (empty: its root).

    Nothing is downloaded if anything stands in the way of one of them: raises `JobProblem` (artifact_conflict).
    """
    where = {file: "/".join(name for name in (into, file.path) if name) for file in files}

    async def one(file: ArtifactFile, transfer: Transfer) -> None:
        mode = 0o755 if file.executable else 0o644
        async with _placed(tree, where[file], mode, owner) as sink:
            try:
                await courier.download(transfer, sink)
            except Stale:
                (renewed,) = await ask([file])
                await courier.download(renewed, sink)

    with _told("downloaded"):
        await _in_thread(lambda: _check_free(tree, where.values()))
        for batch in _batches(files):
            await _side_by_side(one(f, t) for f, t in zip(batch, await ask(batch), strict=True))


def _check_free(tree: Tree, paths: Iterable[str]) -> None:
    taken: set[str] = set()
    for path in paths:
        plain = "/".join(components(path))
        if plain in taken:
            raise Occupied(f"{path} is in it twice.")
        taken.add(plain)
        tree.check_free(path)


@contextlib.asynccontextmanager
async def _placed(tree: Tree, path: str, mode: int, owner: Owner | None) -> AsyncIterator[_IntoFile]:
    # Opening and closing are a few system calls on a local disk: not worth a thread each.
    with tree.place(path, mode=mode, owner=owner) as descriptor:
        yield _IntoFile(descriptor)


@contextlib.contextmanager
def _told(done: str) -> Iterator[None]:
    try:
        yield
    except Occupied as error:
        raise JobProblem(
            Cause.ARTIFACT_CONFLICT, f"An artifact's file is in the way of another: {error} Name another `path`."
        ) from error
    except TreeProblem as error:
        raise JobProblem(Cause.REFUSED, f"An artifact could not be {done}: {error}") from error
    except (TransferFailed, OSError) as error:
        raise JobProblem(Cause.ERRORED, f"An artifact could not be {done}: {error}") from error


async def _side_by_side(coroutines: Iterable[Awaitable[None]]) -> None:
    """All of them, each in a task; the first failure cancels the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(_await(coroutine), name="transfer")
    except* (TransferFailed, TreeProblem, OSError) as problems:
        raise _first(problems) from None


async def _await(awaitable: Awaitable[None]) -> None:
    await awaitable


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _batches(files: Sequence[ArtifactFile]) -> Iterable[list[ArtifactFile]]:
    rest = iter(files)
    return iter(lambda: list(itertools.islice(rest, BATCH)), [])


async def _in_thread(work: Callable[[], _Result]) -> _Result:
    return await asyncio.to_thread(work)
