"""One bare mirror of each project and trust, from which workspaces borrow objects.

A mirror fetches only what is new. It belongs to the agent's uid, which no job has, and a sandbox sees its objects
read-only. Fetches exclude each other, checkouts only exclude fetches; the lock is a file, so it holds between
processes too.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from agent.problems import Cause, JobProblem
from agent.workspace.git import Git, GitFailed, Place, failed_checkout, without_credentials
from agent.workspace.removal import remove_tree

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SCP_LIKE = re.compile(r"(?:[^/@:\s]+@)?[^/@:\s-][^/@:\s]*:(?!//).+")
_PROTOCOLS = {
    "http": ("http", "https"),
    "https": ("https",),
    "ssh": ("ssh",),
    "git": ("git",),
    "file": ("file",),
}
# A submodule's git directory names its work tree, which another branch does not have: git would insist on being there.
_UPLOAD = "GIT_WORK_TREE=/ git upload-pack"
_LOCK_PAUSE = 0.02
_MANY_PACKS = 40
_TIDY_S = 120.0
_NOT_THERE = re.compile(r"not our ref|couldn't find remote ref|no such remote ref|unadvertised object", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a commit is fetched from; made by `of_path`, `of_url` or `of_bundle`."""

    place: str
    protocols: tuple[str, ...]
    local: Path | None = None
    """The path on this machine, if it is one: the only repository whose owner does not matter."""

    @classmethod
    def of_path(cls, path: Path) -> Origin:
        """A repository on this machine, bare or not, or a bundle file."""
        if not path.is_absolute():
            raise JobProblem(Cause.CHECKOUT_FAILED, f"The repository path {path} is not absolute.")
        return cls(str(path), ("file",), path)

    @classmethod
    def of_bundle(cls, file: Path) -> Origin:
        """A git bundle file on this machine."""
        return cls.of_path(file)

    @classmethod
    def of_url(cls, url: str) -> Origin:
        """An http, https, ssh, git or file URL, or `user@host:path`."""
        scheme = urlsplit(url).scheme.lower() if "://" in url else ""
        if scheme == "file":
            return cls(url, ("file",), Path(urlsplit(url).path))
        if scheme in _PROTOCOLS:
            return cls(url, _PROTOCOLS[scheme])
        if not scheme and "::" not in url and _SCP_LIKE.fullmatch(url):
            return cls(url, ("ssh",))
        shown = without_credentials(url)
        raise JobProblem(
            Cause.CHECKOUT_FAILED, f"{shown!r} is no repository URL: http, https, ssh, git and file are spoken here."
        )

    def __str__(self) -> str:
        return without_credentials(self.place)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one fetch brought: objects, and bytes of the packs that hold them; both 0 when all was there."""

    objects: int = 0
    size: int = 0


class Mirror:
    """The mirror of one project and trust. Made by `Mirrors.of`."""

    def __init__(self, git: Git, folder: Path, keep_commits: int) -> None:
        self._git = git
        self._folder = folder
        self._keep = keep_commits
        self.place = Place(folder / "git")

    @property
    def objects(self) -> Path:
        """The folder that workspaces borrow from."""
        return self.place.git_dir / "objects"

    @property
    def boundary(self) -> Path:
        """Git's list of commits whose parents the mirror lacks; there only if the source is itself shallow."""
        return self.place.git_dir / "shallow"

    @property
    def large(self) -> Path:
        """The folder of large files (git LFS), each below the name of its digest."""
        return self._folder / "large"

    @contextlib.asynccontextmanager
    async def storing(self) -> AsyncIterator[None]:
        """Holds off others who fetch large files, and nobody who fetches commits."""
        async with self._locked(fcntl.LOCK_EX, "large.lock"):
            yield

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Holds off fetches, clean-ups and repairs, not other readers."""
        async with self._locked(fcntl.LOCK_SH):
            yield

    async def fetch(self, origin: Origin, commit: str, *, tag: str = "") -> Fetched:
        """Brings the commit and its history (and the source's tags) into the mirror, unless they are there.

        `commit` is a full hash. A mirror found damaged is thrown away and made anew, once. Raises `JobProblem`.
        """
        if not _COMMIT.fullmatch(commit):
            raise JobProblem(Cause.CHECKOUT_FAILED, f"{commit!r} is no full commit hash.")
        async with self._locked(fcntl.LOCK_SH):
            if await self._has(commit, tag):
                return Fetched()
        async with self._locked(fcntl.LOCK_EX):
            if await self._has(commit, tag):  # somebody else was faster
                return Fetched()
            packs = len(self._packs())
            try:
                fetched = await self._bring(origin, commit)
                await self._tidy(packs)
                return fetched
            except GitFailed as error:
                if _NOT_THERE.search(error.sentence) or not await self._damaged():
                    raise failed_checkout(f"Commit {commit[:12]} cannot be fetched from {origin}", error) from error
            return await self._anew(origin, commit)

    async def repair(self, origin: Origin, commit: str) -> bool:
        """Makes the mirror anew if an object of the commit's tree cannot be read; False: it was sound."""
        async with self._locked(fcntl.LOCK_EX):
            try:  # reads every file of the tree and writes it nowhere
                await self._git.run(self.place, "archive", "--format=tar", "--output=/dev/null", commit)
            except GitFailed:
                await self._anew(origin, commit)
                return True
            return False

    async def _tidy(self, before: int) -> None:
        """Folds many small packs into few, each time that there are another `_MANY_PACKS`; large ones stay.

        No object goes, also none that nothing leads to: a job that borrows them, and finds a pack gone that it knew,
        looks again and finds the new one. When it fails, all is as it was.
        """
        if len(self._packs()) // _MANY_PACKS > before // _MANY_PACKS:
            with contextlib.suppress(GitFailed):
                words = ("--geometric=2", "-d", "-q", "--no-write-bitmap-index")
                await self._git.run(self.place, "repack", *words, seconds=_TIDY_S)

    async def _bring(self, origin: Origin, commit: str) -> Fetched:
        if not (self.place.git_dir / "HEAD").exists():
            form = "sha256" if len(commit) == 64 else "sha1"
            # Readable whatever the agent's umask is: a job of another uid borrows the objects.
            options = ("--quiet", "--bare", "--shared=0644", f"--object-format={form}")
            await self._git.run(None, "init", *options, "--", str(self.place.git_dir))
        before = self._packs()
        kept = f"+{commit}:refs/headrace/{commit}"
        try:
            await self._fetch(origin, kept, "+refs/tags/*:refs/tags/*")
        except GitFailed as error:
            # A server that hands out no bare hash: take all that it names, then look.
            if not _NOT_THERE.search(error.sentence):
                raise
            await self._fetch(origin, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
            if await self._has_no(commit):
                raise JobProblem(
                    Cause.CHECKOUT_FAILED, f"Commit {commit[:12]} is not in {origin}: has it been pushed?"
                ) from error
            await self._git.run(self.place, "update-ref", f"refs/headrace/{commit}", commit)
        await self._git.run(self.place, "cat-file", "-e", f"{commit}^{{tree}}")
        await asyncio.to_thread(self._forget_oldest)
        new = {name: facts for name, facts in self._packs().items() if name not in before}
        return Fetched(sum(count for count, _ in new.values()), sum(size for _, size in new.values()))

    async def _fetch(self, origin: Origin, *refspecs: str) -> None:
        whole = ["--unshallow"] if self.boundary.exists() else []
        here = [] if origin.local is None else [f"--upload-pack={_UPLOAD}"]
        await self._git.run(
            self.place,
            "fetch",
            "--quiet",
            "--force",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-auto-maintenance",
            "--no-recurse-submodules",
            "--update-shallow",
            *whole,
            *here,
            "--end-of-options",
            origin.place,
            *refspecs,
            source=origin.local,
            protocols=origin.protocols,
        )

    async def _has(self, commit: str, tag: str) -> bool:
        ref = self.place.git_dir / "refs" / "headrace" / commit
        if not ref.exists():
            return False
        try:
            await self._git.run(self.place, "cat-file", "-e", f"{commit}^{{tree}}")
            if tag:
                peeled = await self._git.run(
                    self.place, "rev-parse", "--verify", "--quiet", "--end-of-options", f"refs/tags/{tag}^{{commit}}"
                )
                if peeled.decode().strip() != commit:
                    return False
        except GitFailed:
            return False
        with contextlib.suppress(FileNotFoundError):
            os.utime(ref)  # the oldest by use are forgotten first
        return True

    async def _has_no(self, commit: str) -> bool:
        try:
            await self._git.run(self.place, "cat-file", "-e", f"{commit}^{{commit}}")
        except GitFailed:
            return True
        return False

    async def _damaged(self) -> bool:
        try:
            await self._git.run(self.place, "fsck", "--connectivity-only", "--no-dangling", "--no-progress")
        except GitFailed:
            return True
        return False

    async def _anew(self, origin: Origin, commit: str) -> Fetched:
        """Sets the mirror aside (running jobs may still borrow from it) and fetches into a new one."""
        with contextlib.suppress(FileNotFoundError):
            self.place.git_dir.rename(self._folder / f"damaged-{os.urandom(8).hex()}")
        try:
            return await self._bring(origin, commit)
        except GitFailed as error:
            raise failed_checkout(f"Commit {commit[:12]} cannot be fetched from {origin}", error) from error

    def _forget_oldest(self) -> None:
        """Drops the refs beyond `keep_commits` that were used longest ago: a mirror must not grow for ever."""
        folder = self.place.git_dir / "refs" / "headrace"
        refs = sorted(folder.iterdir(), key=lambda ref: ref.stat().st_mtime_ns, reverse=True)
        for ref in refs[self._keep :]:
            ref.unlink(missing_ok=True)

    def _packs(self) -> dict[str, tuple[int, int]]:
        """Each pack's number of objects (the last entry of its index's fan-out) and size in bytes."""
        found: dict[str, tuple[int, int]] = {}
        for index in self.objects.glob("pack/*.idx"):
            with contextlib.suppress(OSError, struct.error), index.open("rb") as file:
                file.seek(8 + 255 * 4)
                count = struct.unpack(">I", file.read(4))[0]
                found[index.stem] = (count, index.with_suffix(".pack").stat().st_size)
        return found

    @contextlib.asynccontextmanager
    async def _locked(self, kind: int, name: str = "lock") -> AsyncIterator[None]:
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:  # a blocking flock would need a thread that a cancelled task could not take back
                try:
                    fcntl.flock(lock, kind | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_LOCK_PAUSE)
            os.utime(lock)
            yield
        finally:
            os.close(lock)


class Mirrors:
    """All mirrors of an agent, below one folder that only the agent may enter."""

    def __init__(self, git: Git, folder: Path, *, keep_commits: int = 500) -> None:
        self._git = git
        self._folder = folder
        self._keep = keep_commits

    def of(self, repository: str, *, trusted: bool) -> Mirror:
        """The mirror of a project at one trust: an untrusted run can plant nothing in what a trusted one reads.

        `repository`: all of what makes the project, for its name alone may be another's too.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = hashlib.sha256(f"{'trusted' if trusted else 'untrusted'}\0{repository}".encode()).hexdigest()[:32]
        return Mirror(self._git, self._folder / name, self._keep)

    def remove_unused(self, now: Callable[[], float], seconds: float) -> list[Path]:
        """Removes damaged mirrors, and mirrors and large files not used for so long.

        Only while no attempt of this agent lives.
        """
        gone: list[Path] = []
        if not self._folder.is_dir():
            return gone
        for folder in self._folder.iterdir():
            used = (folder / "lock").stat().st_mtime if (folder / "lock").exists() else 0.0
            unused = now() - used > seconds
            for victim in [folder] if unused else list(folder.glob("damaged-*")):
                remove_tree(victim)
                gone.append(victim)
            for file in [] if unused else folder.glob("large/objects/*/*/*"):
                if now() - file.stat().st_mtime > seconds:
                    file.unlink()
                    gone.append(file)
        return gone
