"""The submodules of a commit: each at exactly the commit that its superproject's tree records, however nested.

Which they are is read from the commit, never from a work tree. Each repository has a mirror of its own, named by
where it is fetched from; what `.gitmodules` says is checked in `gitmodules.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.problems import Cause, JobProblem
from agent.workspace.filling import Part, add_settings, bring, empty, subsection
from agent.workspace.git import Git, GitFailed, failed_checkout, without_credentials
from agent.workspace.gitmodules import DEEPEST, FILE_LIMIT, MOST, BadModules, Entry, entries, resolved, shown
from agent.workspace.mirror import Fetched, Mirror, Mirrors, Origin
from agent.workspace.tree import Tree, TreeProblem
from agent.workspace.upstream import Upstream, clone_of

MODULES = "/hr-mirror/modules"
"""Below it a sandbox finds the objects that submodules borrow, each mirror's in a folder with its number."""

_GITLINK = b"160000"
_REGULAR = (b"100644", b"100755")
_LIST = ".gitmodules"


@dataclass(frozen=True, slots=True)
class Listing:
    """What of a commit's tree matters here. Paths are as git has them."""

    links: dict[str, str]
    """Path of a gitlink -> the commit that it records."""
    paths: frozenset[str]
    """Everything in the tree but folders."""
    modules: str
    """Hash of `.gitmodules`; empty: there is none."""


@dataclass(slots=True)
class Brought:
    """What a walk has made."""

    parts: list[Part]
    notes: list[str]
    """Lines for the job's log."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A place where a submodule's commit may be."""

    origin: Origin
    upstream: Upstream


class Submodules:
    """Brings the submodules of one workspace. `is_host`: the sandbox is the host and finds mirrors where they lie."""

    def __init__(self, git: Git, mirrors: Mirrors, *, trusted: bool, is_host: bool) -> None:
        self._git = git
        self._mirrors = mirrors
        self._trusted = trusted
        self._is_host = is_host
        self._numbers: dict[Path, int] = {}

    async def bring_all(self, top: Part) -> Brought:
        """All of them, breadth first, into the folders that the checkout of `top` has made. Raises `JobProblem`."""
        brought = Brought([], [])
        waiting: deque[tuple[Part, int]] = deque([(top, 0)])
        while waiting:
            part, depth = waiting.popleft()
            with _told_of(part.path):
                found = await self._modules(part, brought.notes)
            if not found:
                continue
            if depth == DEEPEST:
                raise _problem(part.path, f"it has submodules itself, and more than {DEEPEST} levels are not followed")
            if len(brought.parts) + len(found) > MOST:
                raise _problem("", f"This commit has more than {MOST} submodules, nested ones counted: that is refused")
            for entry, commit in found:
                below = await self._bring(part, entry, commit, brought)
                brought.parts.append(below)
                waiting.append((below, depth + 1))
            await asyncio.to_thread(_tell_git, part, brought.parts[-len(found) :], found)
        return brought

    async def _modules(self, part: Part, notes: list[str]) -> list[tuple[Entry, str]]:
        """The entries of a commit that belong to gitlinks, with the commits that these record."""
        try:
            listing = await _listing(self._git, part)
            said = await self._said(part, listing.modules) if listing.modules else []
        except GitFailed as error:
            raise failed_checkout(f"The submodules of commit {part.commit[:12]} cannot be read", error) from error
        except BadModules as error:
            raise _problem("", f"{error}") from error
        by_path = {entry.path: entry for entry in said}
        for path in listing.links:
            if path not in by_path:
                raise _problem(
                    "", f"{shown(path)} is a submodule in the tree, but .gitmodules has no entry for it: add one"
                )
        for entry in said:
            if entry.path not in listing.links:
                _check_stale(entry, listing.paths)
                notes.append(f"{_LIST} has an entry for {shown(entry.path)}, where the commit has nothing")
        return [(by_path[path], commit) for path, commit in listing.links.items()]

    async def _said(self, part: Part, blob: str) -> list[Entry]:
        size = int(await self._git.run(part.mirror.place, "cat-file", "-s", blob))
        if size > FILE_LIMIT:
            raise BadModules(f"{_LIST} has {size:,} bytes: at most {FILE_LIMIT:,} are read")
        text = await self._git.run(part.mirror.place, "cat-file", "blob", blob)
        if not text.strip():
            return []
        words = ("config", "--no-includes", "--file", "-", "--list", "-z")
        return entries(await self._git.run(None, *words, stdin=text))

    async def _bring(self, parent: Part, entry: Entry, commit: str, brought: Brought) -> Part:
        path = f"{parent.path}/{entry.path}" if parent.path else entry.path
        await asyncio.to_thread(_check_folder, parent.folder, entry.path)
        candidates, last = self._candidates(parent.upstream, entry, path)
        for candidate in candidates:
            mirror = self._mirrors.of(f"submodule\0{candidate.origin.place}", trusted=self._trusted)
            part = Part(
                mirror=mirror,
                origin=candidate.origin,
                upstream=candidate.upstream,
                commit=commit,
                folder=parent.folder / entry.path,
                objects_at=self._objects_at(mirror),
                depth=parent.depth,
                remote=candidate.upstream.url if candidate.upstream.is_remote() else "",
                path=path,
            )
            if candidate is not candidates[0]:
                await empty(part.folder)
            try:
                fetched = await self._brought(part)
            except JobProblem as problem:
                # What a clone lacks may be where it came from; what that lacks is worth saying.
                last = last or (problem if candidate is candidates[-1] else None)
                continue
            told = f"{fetched.objects} objects fetched" if fetched.objects else "all was there"
            brought.notes.append(f"submodule {shown(path)}: commit {commit}: {told}")
            return part
        assert last is not None  # without a candidate there is a reason
        raise last

    async def _brought(self, part: Part) -> Fetched:
        with _told_of(part.path):
            try:
                return await bring(self._git, part)
            except GitFailed as error:
                raise failed_checkout(f"commit {part.commit[:12]} cannot be checked out", error) from error

    def _candidates(self, parent: Upstream, entry: Entry, path: str) -> tuple[list[_Candidate], JobProblem | None]:
        """Where to look for the commit, in order, and why its URL is not among them if that is so."""
        found: list[_Candidate] = []
        own = parent.below(entry.name, entry.path)
        url, problem = "", None
        try:
            url = resolved(entry.url, parent.url)
            origin: Origin | None = self._origin(url, parent)
        except (BadModules, JobProblem) as error:
            sentence = error.sentence if isinstance(error, JobProblem) else f"{error}."
            origin, problem = None, _problem(path, sentence.removesuffix("."))
        local = parent.local and origin is not None and origin.local is not None
        if own is not None:
            upstream = Upstream(url if origin is not None else "", own[0], own[1], local=local)
            found.append(_Candidate(Origin.of_path(own[0]), upstream))
        if origin is not None:
            clone = own or ((clone_of(origin.local), None) if origin.local is not None else (None, None))
            found.append(_Candidate(origin, Upstream(url, clone[0], clone[1], local=local)))
        return found, problem

    def _origin(self, url: str, parent: Upstream) -> Origin:
        origin = Origin.of_path(Path(url)) if url.startswith("/") else Origin.of_url(url)
        if origin.local is not None and not parent.local:
            sentence = f"its URL {shown(str(origin))} is a path on the agent's own machine: write that of a server"
            raise JobProblem(Cause.CHECKOUT_FAILED, sentence)
        if "ssh" in origin.protocols and not self._trusted:
            sentence = f"its URL {shown(str(origin))} takes the agent's own key, and this run is not trusted"
            raise JobProblem(Cause.CHECKOUT_FAILED, sentence)
        return origin

    def _objects_at(self, mirror: Mirror) -> str:
        if self._is_host:
            return str(mirror.objects)
        return f"{MODULES}/{self._numbers.setdefault(mirror.objects, len(self._numbers))}/objects"


async def _listing(git: Git, part: Part) -> Listing:
    """Raises `GitFailed`, `BadModules`."""
    output = await git.run(part.mirror.place, "ls-tree", "-r", "-z", "--full-tree", part.commit)
    links: dict[str, str] = {}
    paths: set[str] = set()
    modules = ""
    for line in output.split(b"\0"):
        facts, tab, name = line.partition(b"\t")
        if not tab:
            continue
        mode, _, commit = facts.split(b" ")
        path = name.decode(errors="surrogateescape")
        paths.add(path)
        if mode == _GITLINK:
            links[path] = commit.decode()
        elif path == _LIST and mode in _REGULAR:  # git refuses a link under that name
            modules = commit.decode()
    if len(links) > MOST:
        raise BadModules(f"This commit has {len(links):,} submodules: at most {MOST} are checked out")
    return Listing(links, frozenset(paths), modules)


def _check_stale(entry: Entry, paths: frozenset[str]) -> None:
    """An entry that was left behind when its submodule went is fine, as for git; one of something else is not."""
    names = entry.path.split("/")
    above = {"/".join(names[:count]) for count in range(1, len(names) + 1)}
    if above & paths or any(path.startswith(f"{entry.path}/") for path in paths):
        raise _problem("", f"{_LIST} has the path {shown(entry.path)}, which is no submodule in the tree: take it out")


def _check_folder(top: Path, path: str) -> None:
    """The folder that the checkout has made for a submodule: a real one, on no way through a link."""
    try:
        with Tree.open(top) as tree:
            facts = tree.facts(path)
    except TreeProblem as error:
        raise _problem(path, f"it has no folder of its own: {error}".removesuffix(".")) from error
    if not stat.S_ISDIR(facts.st_mode):
        raise _problem(path, "something else stands where its folder has to be")


def _tell_git(parent: Part, parts: list[Part], found: list[tuple[Entry, str]]) -> None:
    """Makes the submodules active, as `git submodule init` does: so `git submodule status` knows them."""
    sections = []
    for part, (entry, _) in zip(parts, found, strict=True):
        url = {"url": without_credentials(part.remote)} if part.remote else {}
        sections.append((subsection("submodule", entry.name), {"active": "true", **url}))
    add_settings(parent, sections)


@contextlib.contextmanager
def _told_of(path: str) -> Iterator[None]:
    """Names the submodule in every problem."""
    try:
        yield
    except JobProblem as problem:
        if not path:
            raise
        raise JobProblem(problem.cause, f"Submodule {shown(path)}: {problem.sentence}") from problem


def _problem(path: str, text: str) -> JobProblem:
    return JobProblem(Cause.CHECKOUT_FAILED, f"Submodule {shown(path)}: {text}." if path else f"{text}.")
