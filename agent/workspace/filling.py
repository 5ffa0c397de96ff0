"""Fills one folder with one repository's commit: a `.git` of ours that borrows the mirror's objects, and the files.

The folder's `.git` holds no object of its own at first: it borrows them from the mirror, which the sandbox sees
read-only at a fixed path. Nothing in it shares an inode with the mirror, so a job can spoil its own tree alone.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

from agent.workspace.git import Git, GitFailed, Place, quoted, without_credentials
from agent.workspace.mirror import Fetched, Mirror, Origin
from agent.workspace.removal import remove_tree
from agent.workspace.upstream import Upstream

_PARENT = re.compile(rb"^parent ([0-9a-f]+)$", re.MULTILINE)

# `checkStat = minimal`: owner and inode change between host and sandbox, and git should not read all files for it.
_WORKSPACE_SETTINGS = """\
[core]
	repositoryformatversion = {version}
	filemode = true
	bare = false
	logallrefupdates = true
	checkStat = minimal
	trustctime = false
[gc]
	auto = 0
[advice]
	detachedHead = false
"""


@dataclass(frozen=True, slots=True)
class Part:
    """One repository of a workspace: the top, or a submodule."""

    mirror: Mirror
    origin: Origin
    upstream: Upstream
    commit: str
    """Full hash."""
    folder: Path
    objects_at: str
    """Where the sandbox will find the mirror's objects."""
    depth: int = 0
    """Commits of history; 0: all."""
    tag: str = ""
    """The tag that the run is for, if any."""
    remote: str = ""
    """Becomes the remote `origin`, without credentials; empty: no remote."""
    path: str = ""
    """Of a submodule, from the top."""

    @property
    def place(self) -> Place:
        """Where git finds it."""
        return Place(self.folder / ".git", self.folder)


async def bring(git: Git, part: Part) -> Fetched:
    """Fetches the commit into the mirror and fills the folder, which must be there and empty.

    The head is detached at the commit; tags that lead to it are there. Raises `JobProblem`, `GitFailed`.
    """
    fetched = await part.mirror.fetch(part.origin, part.commit, tag=part.tag)
    try:
        await _fill(git, part)
    except GitFailed:
        if not await part.mirror.repair(part.origin, part.commit):
            raise
        await empty(part.folder)
        await _fill(git, part)
    return fetched


def borrowed(part: Part) -> dict[str, str]:
    """What lets git on the host see the objects that the folder borrows."""
    return {"GIT_ALTERNATE_OBJECT_DIRECTORIES": _quoted_path(part.mirror.objects)}


def add_settings(part: Part, sections: list[tuple[str, dict[str, str]]]) -> None:
    """Adds sections (`submodule "x"`) to the configuration that the job will find."""
    with (part.folder / ".git" / "config").open("ab") as file:
        for name, settings in sections:
            lines = [f"[{name}]", *(f"\t{key} = {quoted(value)}" for key, value in settings.items()), ""]
            file.write("\n".join(lines).encode(errors="surrogateescape"))


def subsection(kind: str, name: str) -> str:
    """The head of a section with a name of others' choosing, which has no control characters."""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'{kind} "{escaped}"'


async def _fill(git: Git, part: Part) -> None:
    mirror, folder = part.mirror, part.folder
    async with mirror.reading():
        tags = await git.run(
            mirror.place,
            "for-each-ref",
            f"--merged={part.commit}",
            "--format=%(objectname) %(refname)",
            "refs/tags",
        )
        shallow = mirror.boundary.read_text(encoding="ascii").split() if mirror.boundary.exists() else []
        if part.depth:
            shallow += await _cut(git, mirror.place, part.commit, part.depth)
        await asyncio.to_thread(_make_git_dir, part, tags, sorted(set(shallow)))
        words = ("--reset", "-u", "--no-recurse-submodules", part.commit)
        await git.run(part.place, "read-tree", *words, extra=borrowed(part))
    (folder / ".git" / "objects" / "info" / "alternates").write_text(f"{part.objects_at}\n")


def _make_git_dir(part: Part, tags: bytes, shallow: list[str]) -> None:
    folder = part.folder / ".git"
    for name in ("objects/info", "objects/pack", "refs/heads", "refs/tags", "info"):
        (folder / name).mkdir(parents=True)
    sha256 = len(part.commit) == 64
    config = _WORKSPACE_SETTINGS.format(version=1 if sha256 else 0)
    if sha256:
        config += "[extensions]\n\tobjectformat = sha256\n"
    (folder / "config").write_text(config)
    if part.remote:
        url = without_credentials(part.remote)
        add_settings(part, [('remote "origin"', {"url": url, "fetch": "+refs/heads/*:refs/remotes/origin/*"})])
    (folder / "HEAD").write_text(f"{part.commit}\n")
    if tags:
        (folder / "packed-refs").write_bytes(tags)
    if shallow:
        (folder / "shallow").write_text("".join(f"{commit}\n" for commit in shallow))


async def _cut(git: Git, place: Place, commit: str, depth: int) -> list[str]:
    """The commits at which a history of `depth` commits ends: those whose parents the workspace shall not see.

    Borrowed objects are all there; what makes a history short is this list in `.git/shallow`.
    """
    level, seen = [commit], {commit}
    for _ in range(depth - 1):
        below: list[str] = []
        for parents in (await _parents(git, place, level)).values():
            below += [parent for parent in parents if parent not in seen]
            seen.update(parents)
        if not (level := list(dict.fromkeys(below))):
            return []
    return [name for name, parents in (await _parents(git, place, level)).items() if parents]


async def _parents(git: Git, place: Place, commits: list[str]) -> dict[str, list[str]]:
    output = await git.run(place, "cat-file", "--batch", stdin="".join(f"{c}\n" for c in commits).encode())
    found: dict[str, list[str]] = {}
    at = 0
    while at < len(output):
        head, _, _ = output[at:].partition(b"\n")
        name, kind, *size = head.decode().split(" ")
        if kind != "commit":
            raise GitFailed("cat-file", 0, f"{name} is no commit here ({kind})")
        start = at + len(head) + 1
        at = start + int(size[0]) + 1
        header = output[start:at].partition(b"\n\n")[0]
        found[name] = [parent.decode() for parent in _PARENT.findall(header)]
    return found


async def empty(folder: Path) -> None:
    """Makes the folder an empty one, ready to be filled."""
    await asyncio.to_thread(remove_tree, folder)
    await asyncio.to_thread(folder.mkdir, mode=0o755)


def _quoted_path(path: Path) -> str:
    """A path for a list that git splits at colons."""
    text = str(path)
    if ":" not in text and not text.startswith('"'):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
