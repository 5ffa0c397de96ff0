"""A workspace for one attempt: a fresh work tree at the run's exact commit, with what the job asked for in it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from agent.sandbox.protocol import Bind
from agent.workspace.filling import Part, bring
from agent.workspace.git import Git, GitFailed, failed_checkout
from agent.workspace.large_files import LargeFiles, Placed
from agent.workspace.mirror import Fetched, Mirrors, Origin
from agent.workspace.removal import hand_over, remove_tree
from agent.workspace.submodules import Submodules
from agent.workspace.tree import Owner
from agent.workspace.upstream import Upstream
from headrace.pipeline.plan import Checkout

OBJECTS = "/hr-mirror/objects"
"""Where a sandbox finds the objects that its workspace borrows."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an attempt wants in its workspace."""

    repository: str
    """All of what makes the project."""
    origin: Origin
    commit: str
    """Full hash."""
    checkout: Checkout
    trusted: bool = True
    tag: str = ""
    """The tag that the run is for, if any: it must be in the workspace."""
    url: str = ""
    """Becomes the remote `origin`, without credentials; empty: no remote."""
    upstream: Upstream = field(default_factory=Upstream)


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace made ready."""

    folder: Path
    binds: tuple[Bind, ...]
    """What the sandbox has to make visible for git to work inside."""
    fetched: Fetched
    """For the top; of submodules a note tells."""
    notes: tuple[str, ...] = ()
    """What there is to say of submodules and large files, in lines for the job's log."""


class Checkouts:
    """Makes workspaces. `lfs_limit`: bytes of large files that one may have."""

    def __init__(self, git: Git, mirrors: Mirrors, *, lfs_limit: int) -> None:
        self._git = git
        self._mirrors = mirrors
        self._large_files = LargeFiles(git, lfs_limit)

    async def make(self, wanted: Wanted, folder: Path, *, owner: Owner | None, is_host: bool) -> Workspace:
        """Makes the workspace in `folder`, which must not exist yet, and gives it to `owner` if one is named.

        `is_host`: the sandbox is the host itself, has no binds and finds mirrors where they lie. The head is
        detached at the commit; tags that lead to it are there. Raises `JobProblem`, and then leaves no folder behind.
        """
        await asyncio.to_thread(folder.mkdir, mode=0o755)
        try:
            workspace = Workspace(folder, (), Fetched())
            if wanted.checkout.enabled:
                workspace = await self._filled(wanted, folder, is_host=is_host)
            if owner is not None:
                await asyncio.to_thread(hand_over, folder, owner.uid, owner.gid)
        except GitFailed as error:
            await _discard(folder)
            raise failed_checkout(f"Commit {wanted.commit[:12]} cannot be checked out", error) from error
        except BaseException:
            await _discard(folder)
            raise
        return workspace

    async def _filled(self, wanted: Wanted, folder: Path, *, is_host: bool) -> Workspace:
        mirror = self._mirrors.of(wanted.repository, trusted=wanted.trusted)
        top = Part(
            mirror=mirror,
            origin=wanted.origin,
            upstream=wanted.upstream,
            commit=wanted.commit,
            folder=folder,
            objects_at=str(mirror.objects) if is_host else OBJECTS,
            depth=wanted.checkout.depth,
            tag=wanted.tag,
            remote=wanted.url,
        )
        fetched = await bring(self._git, top)
        parts, notes = [top], []
        if wanted.checkout.submodules:
            walk = Submodules(self._git, self._mirrors, trusted=wanted.trusted, is_host=is_host)
            brought = await walk.bring_all(top)
            parts += brought.parts
            notes += brought.notes
        if wanted.checkout.lfs:
            notes.append(await self._place_large_files(parts))
        shown = {} if is_host else {part.objects_at: part.mirror.objects for part in parts}
        return Workspace(
            folder,
            tuple(Bind(objects, at) for at, objects in shown.items()),
            fetched,
            tuple(notes),
        )

    async def _place_large_files(self, parts: list[Part]) -> str:
        placed = Placed()
        for part in parts:
            more = await self._large_files.place(part, placed.size)
            placed = Placed(placed.files + more.files, placed.size + more.size)
        return f"large files: {placed.files:,}, {placed.size:,} bytes" if placed.files else "large files: none"


async def _discard(folder: Path) -> None:
    """Removes the folder, also when the task is being cancelled."""
    await asyncio.shield(asyncio.to_thread(remove_tree, folder))
