"""What is on disk, as a commit: tracked changes and untracked files that are not ignored.

The user's repository, index and refs stay as they are, byte for byte: the index used is a copy, and new objects go
to a small bare repository of ours that borrows the user's objects (git renews the time of an object file that it
would have written again; its bytes stay). The same tree on the same commit gives the same
commit again, so that nothing is built twice for a newer date.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headrace.cli.source_git import GitError, SourceError, UserGit

_NOBODY = "Headrace"
_ADDRESS = "headrace@localhost"
_MOST_SNAPSHOTS = 100
_SNAPSHOTS_KEPT = 50


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on this machine, as git sees it."""

    git_dir: Path
    common_dir: Path
    """Where objects and branches are: another folder than `git_dir` in a linked worktree."""
    top: Path | None
    """Top of the work tree; None: bare."""

    @property
    def identity(self) -> Path:
        """The path that makes the project: the same for all worktrees of a repository."""
        if self.common_dir.name == ".git":
            return self.common_dir.parent
        if self.top is not None and self.common_dir == self.git_dir:
            return self.top  # a submodule: its git directory lies in the one above
        return self.common_dir


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The commit that stands for what is on disk, and how many files differ from HEAD."""

    commit: str
    changed: int


def scratch_repository(git: UserGit, repository: Repository, state: Path) -> Path:
    """Our bare repository that borrows the objects of the user's, with its shallow boundary and its tags."""
    scratch = state / hashlib.sha256(os.fsencode(repository.common_dir)).hexdigest()[:24]
    objects = git.text("rev-parse", "--path-format=absolute", "--git-path", "objects")
    if "\n" in objects or objects.startswith(('"', "#")):
        raise SourceError(f"The path {objects!r} cannot be named in a list of git's: move the repository.")
    if not (scratch / "HEAD").exists():
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        form = git.text("rev-parse", "--show-object-format")
        git.at("-C", "/").raw("init", "--quiet", "--bare", "--template=", f"--object-format={form}", str(scratch))
    _write(scratch / "objects" / "info" / "alternates", os.fsencode(objects + "\n"))
    boundary = repository.common_dir / "shallow"
    if boundary.exists():
        _write(scratch / "shallow", boundary.read_bytes())
    else:
        (scratch / "shallow").unlink(missing_ok=True)
    tags = git.raw("for-each-ref", "--format=%(objectname) %(refname)", "refs/tags")
    _write(scratch / "packed-refs", tags)
    return scratch


def take(git: UserGit, repository: Repository, scratch: Path, head: str) -> Snapshot:
    """Makes the commit of what is on disk. `head` is HEAD's commit, empty in a repository without any."""
    own = git.at(f"--git-dir={scratch}")
    try:
        tree = _tree_on_disk(git, repository, scratch)
        before = own.text("rev-parse", "--verify", f"{head}^{{tree}}") if head else own.text("mktree")
        if tree == before and head:
            return Snapshot(head, 0)
        names = own.raw("diff-tree", "-r", "-z", "--name-only", "--no-renames", before, tree)
        changed = names.count(b"\0")
        date = own.text("show", "--no-patch", "--format=%ct", head) if head else "0"
        commit = own.at(
            GIT_AUTHOR_NAME=_NOBODY,
            GIT_AUTHOR_EMAIL=_ADDRESS,
            GIT_AUTHOR_DATE=f"@{date} +0000",
            GIT_COMMITTER_NAME=_NOBODY,
            GIT_COMMITTER_EMAIL=_ADDRESS,
            GIT_COMMITTER_DATE=f"@{date} +0000",
        ).text("commit-tree", *(("-p", head) if head else ()), "-m", "Changes that are not committed", tree)
        keep(git, scratch, commit)
    except GitError as error:
        raise SourceError(f"What is on disk in {repository.top} cannot be read: git says: {error.sentence}.") from error
    return Snapshot(commit, changed)


def keep(git: UserGit, scratch: Path, commit: str) -> None:
    """Names the commit in our repository, so that it can be fetched, and lets go of the oldest beyond a number."""
    own = git.at(f"--git-dir={scratch}")
    own.raw("update-ref", f"refs/headrace/{commit}", commit)
    refs = sorted((scratch / "refs" / "headrace").iterdir(), key=lambda ref: ref.stat().st_mtime_ns)
    if len(refs) > _MOST_SNAPSHOTS:
        for ref in refs[:-_SNAPSHOTS_KEPT]:
            ref.unlink(missing_ok=True)
        own.raw("prune", "--expire=14.days.ago")


def _tree_on_disk(git: UserGit, repository: Repository, scratch: Path) -> str:
    assert repository.top is not None
    objects = git.text("rev-parse", "--path-format=absolute", "--git-path", "objects")
    with _index_copy(git, scratch) as index:
        working = git.at(
            "-C",
            str(repository.top),
            f"--git-dir={repository.git_dir}",
            f"--work-tree={repository.top}",
            GIT_INDEX_FILE=str(index),
            GIT_OBJECT_DIRECTORY=str(scratch / "objects"),
            GIT_ALTERNATE_OBJECT_DIRECTORIES=_in_list(objects),
        )
        working.raw("add", "--all", "--", ".")
        return working.text("write-tree")


@contextlib.contextmanager
def _index_copy(git: UserGit, scratch: Path) -> Iterator[Path]:
    """A copy of the user's index: what it knows of unchanged files saves reading them."""
    theirs = Path(git.text("rev-parse", "--path-format=absolute", "--git-path", "index"))
    copy = scratch / f"index-{secrets.token_hex(8)}"
    try:
        with contextlib.suppress(FileNotFoundError):
            # With its time: git distrusts entries as young as the index, and a younger index would hide changes.
            shutil.copy2(theirs, copy)
        yield copy
    finally:
        copy.unlink(missing_ok=True)
        Path(f"{copy}.lock").unlink(missing_ok=True)


def _in_list(path: str) -> str:
    """A path for a list that git splits at colons."""
    if ":" not in path:
        return path
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _write(file: Path, content: bytes) -> None:
    """Writes a file whole or not at all: another command of the user's may read it now."""
    if file.exists() and file.read_bytes() == content:
        return
    draft = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    draft.write_bytes(content)
    draft.replace(file)
