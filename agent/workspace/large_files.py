"""Large files (git LFS): what pointers of a commit stand for is fetched and put in their place.

`git lfs` only ever downloads, and it runs in a repository that we make for the purpose: pointers by our own hand, no
`.lfsconfig`, no name of the commit's. Which files are large, and writing them, is our own: nothing that the commit
says can start a program, choose a server, or have something written elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.problems import Cause, JobProblem
from agent.workspace.filling import Part, borrowed
from agent.workspace.git import Git, GitFailed, Place, failed_checkout, last_line, without_credentials
from agent.workspace.gitmodules import shown
from agent.workspace.pointers import LARGEST, SMALLEST, BadPointer, Pointer, pointer_of
from agent.workspace.removal import remove_tree
from agent.workspace.tree import Tree, TreeProblem
from agent.workspace.upstream import clone_of

_PIECE = 1 << 20
_REGULAR = (b"100644", b"100755")
_NO_PROGRAM = re.compile(r"'lfs' is not a git command")
_SAYS_LITTLE = ("error: failed to fetch some objects", "warning:")
_OLDER_S = 10.0
"""A file as young as the index is read again by `git status`, and would look changed: its pointer is in the index."""

# What a server may take its time for; all else of git LFS is as it comes.
_SETTINGS = {
    "lfs.dialtimeout": "30",
    "lfs.tlstimeout": "30",
    "lfs.activitytimeout": "60",
    "lfs.transfer.maxretries": "3",
    "lfs.transfer.maxretrydelay": "5",
    "lfs.basictransfersonly": "true",
}


class _Stopped(Exception):
    """The checkout was cancelled."""


@dataclass(frozen=True, slots=True)
class Placed:
    """What was put in place of pointers."""

    files: int = 0
    size: int = 0


class LargeFiles:
    """Places the large files of a workspace's repositories. `limit`: bytes of all of them in one workspace."""

    def __init__(self, git: Git, limit: int) -> None:
        self._git = git
        self._limit = limit

    async def place(self, part: Part, taken: int) -> Placed:
        """Those of one repository; `taken` bytes of the limit are used up. Raises `JobProblem`."""
        try:
            return await self._place(part, taken)
        except GitFailed as error:
            raise failed_checkout(f"{_of(part)}large files cannot be checked out", error) from error
        except OSError as error:
            raise _problem(part, f"large files cannot be written on the agent: {error.strerror}") from error
        except TreeProblem as error:
            raise _problem(part, f"large files cannot be written: {error}".removesuffix(".")) from error

    async def _place(self, part: Part, taken: int) -> Placed:
        pointers = await self._pointers(part)
        if not pointers:
            return Placed()
        size = sum(pointer.size for pointer in pointers.values())
        if size + taken > self._limit:
            path, largest = max(pointers.items(), key=lambda item: item[1].size)
            raise _problem(
                part,
                f"the large files of the checkout have {size + taken:,} bytes together ({shown(path)} alone "
                f"{largest.size:,}), and HEADRACE_LFS_LIMIT of this agent allows {self._limit:,}",
            )
        store = part.mirror.large
        async with part.mirror.storing():
            await _in_thread(lambda stop: self._take_from_clones(part, pointers, stop))
            if missing := _missing(store, pointers):
                await self._download(part, missing)
            _check_room(part, part.folder, size)
            await _in_thread(lambda stop: _write_all(part, store, pointers, stop))
        await self._tell_index(part, pointers)
        return Placed(len(pointers), size)

    async def _pointers(self, part: Part) -> dict[str, Pointer]:
        """Path -> pointer, for regular files that the commit's attributes give to `filter=lfs`."""
        output = await self._git.run(part.mirror.place, "ls-tree", "-r", "-l", "-z", "--full-tree", part.commit)
        small: dict[bytes, bytes] = {}
        for line in output.split(b"\0"):
            facts, _, path = line.partition(b"\t")
            mode, _, blob, size = facts.split() or (b"", b"", b"", b"-")
            if mode in _REGULAR and SMALLEST <= int(size) < LARGEST:
                small[path] = blob
        if not small:
            return {}
        words = ("check-attr", "--cached", "-z", "--stdin", "filter")
        told = await self._git.run(part.place, *words, stdin=b"\0".join((*small, b"")), extra=borrowed(part))
        fields = told.split(b"\0")
        large = [path for path, value in zip(fields[::3], fields[2::3], strict=False) if value == b"lfs"]
        found: dict[str, Pointer] = {}
        for path, content in zip(large, await self._contents(part, [small[path] for path in large]), strict=True):
            name = path.decode(errors="surrogateescape")
            try:
                if (pointer := pointer_of(content)) is not None:
                    found[name] = pointer
            except BadPointer as error:
                raise _problem(part, f"{shown(name)} cannot be fetched: {error}") from error
        return found

    async def _contents(self, part: Part, blobs: list[bytes]) -> list[bytes]:
        if not blobs:
            return []
        output = await self._git.run(part.mirror.place, "cat-file", "--batch", stdin=b"\n".join((*blobs, b"")))
        found, at = [], 0
        while at < len(output):
            head, _, _ = output[at:].partition(b"\n")
            start = at + len(head) + 1
            at = start + int(head.split(b" ")[2]) + 1
            found.append(output[start : at - 1])
        return found

    def _take_from_clones(self, part: Part, pointers: dict[str, Pointer], stop: threading.Event) -> None:
        """Copies what the user's own clone on this machine has, or the repository that it comes from."""
        for pointer in _missing(part.mirror.large, pointers).values():
            for clone in _clones(part):
                source, target = clone / "lfs" / pointer.below(), part.mirror.large / pointer.below()
                if not source.is_file() or source.stat().st_size != pointer.size:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                draft = part.mirror.large / "draft"
                with draft.open("wb") as file:
                    is_it = _copy(source, file.fileno(), stop) == pointer.oid
                if is_it:
                    draft.replace(target)
                    break
                draft.unlink()

    async def _download(self, part: Part, missing: dict[str, Pointer]) -> None:
        """By git LFS from the server beside the source's own URL, whatever the commit says of others."""
        path, pointer = next(iter(missing.items()))
        if not part.upstream.is_remote():
            raise _problem(part, _nowhere(part, path))
        _check_room(part, part.mirror.large.parent, sum(each.size for each in missing.values()))
        largest = max(each.size for each in missing.values())
        said = "the server did not send it"
        with _asking(part.mirror.large) as folder:
            place = await self._asked(folder, missing)
            given = {"remote.origin.url": part.upstream.url, "lfs.storage": str(part.mirror.large), **_SETTINGS}
            # Without a terminal git LFS would take the empty answer of `true` for a password, and try for ever.
            extra = {"GIT_ASKPASS": "false", "SSH_ASKPASS": "false", **_as_environment(given)}
            bound = largest + (1 << 20)  # a server that sends without end fills no disk
            try:
                words = ("lfs", "fetch", "origin", "refs/heads/asked")
                await self._git.run(place, *words, extra=extra, largest_file=bound)
            except GitFailed as error:
                if _NO_PROGRAM.search(error.message):
                    raise _problem(part, _no_program(len(missing))) from error
                said = f"git LFS says: {_last_line(error)}"
            finally:
                await asyncio.shield(asyncio.to_thread(remove_tree, part.mirror.large / "incomplete"))
        if left := _missing(part.mirror.large, missing):
            path, pointer = next(iter(left.items()))
            where = without_credentials(part.upstream.url)
            what = f"the large file {shown(path)} (sha256 {pointer.oid[:12]}, {pointer.size:,} bytes)"
            raise _problem(part, f"{what} cannot be fetched from {where}: {said}")

    async def _asked(self, folder: Path, missing: dict[str, Pointer]) -> Place:
        """A repository with one commit of nothing but the pointers that are wanted."""
        place = Place(folder / "git")
        await self._git.run(None, "init", "--quiet", "--bare", "--", str(place.git_dir))
        lines = [b"commit refs/heads/asked\ncommitter h <h> 0 +0000\ndata 0\n"]
        for pointer in set(missing.values()):
            text = pointer.text()
            lines.append(f"M 100644 inline {pointer.oid}\ndata {len(text)}\n".encode() + text + b"\n")
        await self._git.run(place, "fast-import", "--quiet", stdin=b"".join(lines))
        return place

    async def _tell_index(self, part: Part, pointers: dict[str, Pointer]) -> None:
        """Makes the index know the files as they are now, so that `git status` calls none of them changed.

        Git asks the filter what the file would be in a commit; the answer is what is there already. Where it cannot
        be (a file that also has an encoding), git status shows it as changed, and nothing else is wrong.
        """
        given = _as_environment({"filter.lfs.clean": "git cat-file blob :0:%f", "filter.lfs.required": "true"})
        paths = b"\0".join((*(path.encode(errors="surrogateescape") for path in pointers), b""))
        with contextlib.suppress(GitFailed):
            await self._git.run(
                part.place, "update-index", "-z", "--stdin", stdin=paths, extra={**borrowed(part), **given}
            )


def _check_room(part: Part, folder: Path, size: int) -> None:
    facts = os.statvfs(folder)
    free = facts.f_bavail * facts.f_frsize
    if size > free:
        raise _problem(part, f"its large files need {size:,} bytes, and the agent's disk has {free:,} left")


def _clones(part: Part) -> list[Path]:
    """Git directories on this machine that may have large files."""
    found = [part.upstream.clone] if part.upstream.clone is not None else []
    if part.upstream.local and part.upstream.url and not part.upstream.is_remote():
        above = clone_of(Path(part.upstream.url.removeprefix("file://")))
        found += [above] if above is not None else []
    return found


def _missing(store: Path, pointers: dict[str, Pointer]) -> dict[str, Pointer]:
    """Those that the store lacks, or has in another size. What it has counts as used now."""
    found = {}
    for path, pointer in pointers.items():
        file = store / pointer.below()
        try:
            if file.stat().st_size != pointer.size:
                file.unlink()
                found[path] = pointer
            else:
                os.utime(file)
        except FileNotFoundError:
            found[path] = pointer
    return found


def _write_all(part: Part, store: Path, pointers: dict[str, Pointer], stop: threading.Event) -> None:
    with Tree.open(part.folder) as tree:
        for path, pointer in pointers.items():
            file = store / pointer.below()
            with tree.rewritten(path) as descriptor:
                if _copy(file, descriptor, stop) != pointer.oid:
                    file.unlink()
                    raise _problem(
                        part, f"the large file {shown(path)} was damaged on the agent's disk and is gone now: try again"
                    )
                older = int((os.fstat(descriptor).st_mtime - _OLDER_S) * 1e9)
                os.utime(descriptor, ns=(older, older))


def _copy(source: Path, target: int, stop: threading.Event) -> str:
    """Copies a file into an open one; returns the SHA-256 of what was copied. Raises `OSError`."""
    digest = hashlib.sha256()
    with source.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            if stop.is_set():
                raise _Stopped
            digest.update(piece)
            view = memoryview(piece)
            while view:
                view = view[os.write(target, view) :]
    return digest.hexdigest()


async def _in_thread(work: Callable[[threading.Event], None]) -> None:
    """Runs what takes long in a thread; a task that is cancelled waits until it has stopped."""
    stop = threading.Event()
    running = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.gather(running, return_exceptions=True)
        raise


@contextlib.contextmanager
def _asking(store: Path) -> Iterator[Path]:
    folder = store.with_name("asking")
    shutil.rmtree(folder, ignore_errors=True)  # an agent that was killed left it
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as_environment(settings: dict[str, str]) -> dict[str, str]:
    """Settings of git's that stand in no file: one may be a URL with credentials."""
    found = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (name, value) in enumerate(settings.items()):
        found |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return found


def _last_line(error: GitFailed) -> str:
    lines = [line for line in error.message.splitlines() if not line.startswith(_SAYS_LITTLE)]
    said = last_line("\n".join(lines)) if lines else error.sentence
    return re.sub(r"^\[[0-9a-f]{64}\] ", "", said)


def _nowhere(part: Part, path: str) -> str:
    if part.upstream.clone is not None:
        return (
            f"the large file {shown(path)} is not in {part.upstream.clone}/lfs: run `git lfs fetch` in that repository"
        )
    return (
        f"the large file {shown(path)} is not in the bundle that this run came as: push the commit and its large files "
        "to a server that agents reach, and name it with `--repo URL`"
    )


def _no_program(count: int) -> str:
    files = "a large file" if count == 1 else f"{count:,} large files"
    return f"it has {files}, and git-lfs is not installed on this agent: `apt-get install git-lfs` there"


def _of(part: Part) -> str:
    return f"Submodule {shown(part.path)}: commit {part.commit[:12]}: " if part.path else f"Commit {part.commit[:12]}: "


def _problem(part: Part, text: str) -> JobProblem:
    return JobProblem(Cause.CHECKOUT_FAILED, f"{_of(part)}{text}.")
