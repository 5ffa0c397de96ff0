"""What a repository is known by, beside where its commits are fetched from: submodules and large files need it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agent.problems import JobProblem
from agent.workspace.git import Git, GitFailed
from agent.workspace.mirror import Origin


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a repository comes from, and what of it its user has on this machine."""

    url: str = ""
    """Its own URL or path, with credentials: relative URLs of submodules begin at it, large files are asked for
    beside it. Empty: nobody knows."""
    clone: Path | None = None
    """The git directory of the user's own clone on this machine, read before anything is asked over a network."""
    tree: Path | None = None
    """The work tree of that clone."""
    local: bool = False
    """Whether its `.gitmodules` may name repositories on this machine: only where it comes from here itself."""

    def is_remote(self) -> bool:
        """Whether its URL leads over a network."""
        return bool(self.url) and _is_remote(self.url)

    def below(self, name: str, path: str) -> tuple[Path, Path | None] | None:
        """Git directory and work tree of a submodule in the user's own clone, if it is there."""
        tree = self.tree / path if self.tree is not None else None
        found = clone_of(tree) if tree is not None and os.path.lexists(tree / ".git") else None
        if found is None and self.clone is not None:
            found = clone_of(self.clone / "modules" / name)
        return None if found is None else (found, tree)


def _is_remote(url: str) -> bool:
    try:
        return Origin.of_url(url).local is None
    except JobProblem:
        return False


def clone_of(place: Path) -> Path | None:
    """The git directory with the objects of a repository on this machine, bare or not; None: there is none."""
    folder = Path(os.path.realpath(place))
    dot = folder / ".git"
    if dot.is_file():
        first = _first_line(dot)
        if not first.startswith("gitdir:"):
            return None
        folder = Path(os.path.realpath(folder / first.removeprefix("gitdir:").strip()))
    elif dot.is_dir():
        folder = dot
    if (common := folder / "commondir").is_file():
        folder = Path(os.path.realpath(folder / _first_line(common).strip()))
    return folder if (folder / "HEAD").is_file() and (folder / "objects").is_dir() else None


async def upstream_of_path(git: Git, repository: Path) -> Upstream:
    """What is known of a repository on this machine: it is its own upstream, unless its remote `origin` is."""
    clone = clone_of(repository)
    if clone is None:
        return Upstream(str(repository), local=True)
    tree = repository if (repository / ".git").exists() else None
    try:
        words = ("config", "--no-includes", "--file", str(clone / "config"), "--get", "remote.origin.url")
        said = (await git.run(None, *words)).decode(errors="surrogateescape").strip()
    except GitFailed:  # it has none
        said = ""
    return Upstream(_whole(said, repository), clone, tree, local=True)


def _whole(url: str, repository: Path) -> str:
    """The URL of a remote, a relative path as seen from the repository that names it; its own path without any."""
    if _is_remote(url) or "://" in url:
        return url
    return os.path.normpath(repository / url)


def _first_line(file: Path) -> str:
    return file.read_bytes()[:4096].decode(errors="surrogateescape").partition("\n")[0]
