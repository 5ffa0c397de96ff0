"""A workspace for one attempt: a fresh work tree at the run's exact commit.

Its `.git` holds no object of its own at first: it borrows them from the mirror, which the sandbox sees read-only at
a fixed path. Nothing in the workspace shares an inode with the mirror, so a job can spoil its own tree alone.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

from agent.problems import Cause, JobProblem
from agent.sandbox.protocol import Bind
from agent.workspace.git import Git, GitFailed, Place, failed_checkout, without_credentials
from agent.workspace.mirror import Fetched, Mirror, Origin
from agent.workspace.removal import hand_over, remove_tree
from agent.workspace.tree import Owner
from headrace.pipeline.plan import Checkout

OBJECTS = "/hr-mirror/objects"
"""Where a sandbox finds the objects that its workspace borrows."""

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
class Wanted:
    """What an attempt wants in its workspace."""

    origin: Origin
    commit: str
    """Full hash."""
    checkout: Checkout
    tag: str = ""
    """The tag that the run is for, if any: it must be in the workspace."""
    url: str = ""
    """Becomes the remote `origin`, without credentials; empty: no remote."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace made ready."""

    folder: Path
    binds: tuple[Bind, ...]
    """What the sandbox has to make visible for git to work inside."""
    fetched: Fetched


async def check_out(
    git: Git, mirror: Mirror, wanted: Wanted, folder: Path, *, owner: Owner | None, objects_at: str = OBJECTS
) -> Workspace:
    """Makes the workspace in `folder`, which must not exist yet, and gives it to `owner` if one is named.

    `objects_at` is where the sandbox will find the mirror's objects; a sandbox that is the host itself (it has no
    binds) passes `str(mirror.objects)`. The head is detached at the commit; tags that lead to it are there.
    Raises `JobProblem`, and then leaves no folder behind.
    """
    _refuse_unsupported(wanted.checkout)
    fetched = Fetched()
    await asyncio.to_thread(folder.mkdir, mode=0o755)
    try:
        if wanted.checkout.enabled:
            fetched = await mirror.fetch(wanted.origin, wanted.commit, tag=wanted.tag)
            try:
                await _fill(git, mirror, wanted, folder, objects_at)
            except GitFailed:
                if not await mirror.repair(wanted.origin, wanted.commit):
                    raise
                await _empty(folder)
                await _fill(git, mirror, wanted, folder, objects_at)
        if owner is not None:
            await asyncio.to_thread(hand_over, folder, owner.uid, owner.gid)
    except GitFailed as error:
        await _discard(folder)
        raise failed_checkout(f"Commit {wanted.commit[:12]} cannot be checked out", error) from error
    except BaseException:
        await _discard(folder)
        raise
    binds = (Bind(mirror.objects, objects_at),) if wanted.checkout.enabled and objects_at == OBJECTS else ()
    return Workspace(folder, binds, fetched)


def _refuse_unsupported(checkout: Checkout) -> None:
    """Says at once what would otherwise be missing from the tree without a word."""
    for asked, key, mend in (
        (checkout.submodules, "submodules", "fetch them in a step (`git submodule update --init`)"),
        (checkout.lfs, "lfs", "fetch them in a step (`git lfs pull`)"),
    ):
        if checkout.enabled and asked:
            raise JobProblem(
                Cause.CHECKOUT_FAILED, f"`checkout: {{{key}: true}}` is not supported by this agent yet: {mend}."
            )


async def _fill(git: Git, mirror: Mirror, wanted: Wanted, folder: Path, objects_at: str) -> None:
    async with mirror.reading():
        tags = await git.run(
            mirror.place,
            "for-each-ref",
            f"--merged={wanted.commit}",
            "--format=%(objectname) %(refname)",
            "refs/tags",
        )
        shallow = mirror.boundary.read_text(encoding="ascii").split() if mirror.boundary.exists() else []
        if wanted.checkout.depth:
            shallow += await _cut(git, mirror.place, wanted.commit, wanted.checkout.depth)
        await asyncio.to_thread(_make_git_dir, folder / ".git", wanted, tags, sorted(set(shallow)))
        await git.run(
            Place(folder / ".git", folder),
            "read-tree",
            "--reset",
            "-u",
            "--no-recurse-submodules",
            wanted.commit,
            extra={"GIT_ALTERNATE_OBJECT_DIRECTORIES": _quoted_path(mirror.objects)},
        )
    (folder / ".git" / "objects" / "info" / "alternates").write_text(f"{objects_at}\n")


def _make_git_dir(folder: Path, wanted: Wanted, tags: bytes, shallow: list[str]) -> None:
    for name in ("objects/info", "objects/pack", "refs/heads", "refs/tags", "info"):
        (folder / name).mkdir(parents=True)
    sha256 = len(wanted.commit) == 64
    config = _WORKSPACE_SETTINGS.format(version=1 if sha256 else 0)
    if sha256:
        config += "[extensions]\n\tobjectformat = sha256\n"
    if wanted.url:
        url = without_credentials(wanted.url).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        config += f'[remote "origin"]\n\turl = "{url}"\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n'
    (folder / "config").write_text(config)
    (folder / "HEAD").write_text(f"{wanted.commit}\n")
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


async def _empty(folder: Path) -> None:
    await asyncio.to_thread(remove_tree, folder)
    await asyncio.to_thread(folder.mkdir, mode=0o755)


async def _discard(folder: Path) -> None:
    """Removes the folder, also when the task is being cancelled."""
    await asyncio.shield(asyncio.to_thread(remove_tree, folder))


def _quoted_path(path: Path) -> str:
    """A path for a list that git splits at colons."""
    text = str(path)
    if ":" not in text and not text.startswith('"'):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
