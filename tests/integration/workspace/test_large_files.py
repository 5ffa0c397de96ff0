"""Large files: real git LFS against a server of the tests and the user's own clone, and commits that mean harm."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.problems import Cause, JobProblem
from agent.workspace.checkout import Workspace
from agent.workspace.git import Git
from agent.workspace.mirror import Origin
from agent.workspace.upstream import Upstream, upstream_of_path
from headrace.pipeline.plan import Checkout
from tests.harness.fake_lfs import FakeLfs, pointer
from tests.harness.git_repo import Repository, git, http_backend
from tests.integration.workspace.bench import Agent
from tests.integration.workspace.test_checkout_faults import _blob, _tree

WITH = Checkout(lfs=True)
LARGE = os.urandom(300_000)
LFS = {".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n"}


@pytest.fixture
def server() -> FakeLfs:
    return FakeLfs()


@pytest.fixture
def base(server: FakeLfs, repository: Repository) -> Iterator[str]:
    """The URL of what serves the repositories and their large files."""
    with http_backend(repository.path.parent, server) as (url, _):
        yield url


async def check_out(agent: Agent, base: str, commit: str, checkout: Checkout = WITH, **known: str) -> Workspace:
    url = f"{base}/shop/.git"
    return await agent.check_out(Origin.of_url(url), commit, checkout, upstream=Upstream(known.get("url", url)))


async def refused(agent: Agent, base: str, commit: str, **known: str) -> str:
    before = set(agent.state.glob("workspace*"))
    with pytest.raises(JobProblem) as caught:
        await check_out(agent, base, commit, **known)
    assert caught.value.cause is Cause.CHECKOUT_FAILED
    assert set(agent.state.glob("workspace*")) == before
    assert not list(agent.state.glob("mirrors/*/large/incomplete"))
    assert not list(agent.state.glob("mirrors/*/asking"))
    return caught.value.sentence


async def test_large_files_stand_in_place_of_their_pointers(
    agent: Agent, server: FakeLfs, base: str, repository: Repository
) -> None:
    """Once fetched, they serve later attempts; git finds nothing changed, also without git LFS in the sandbox."""
    text = server.keep(LARGE)
    repository.commit({**LFS, "a/one two.bin": text, "b.bin": text, "no.bin": "plain", "text": text})
    (repository.path / "b.bin").chmod(0o755)
    commit = repository.commit({"c.bin": server.keep(b"smaller than its pointer")})
    made = await check_out(agent, base, commit)
    assert made.notes == ("large files: 3, 600,024 bytes",)
    assert (made.folder / "c.bin").read_bytes() == b"smaller than its pointer"
    assert (made.folder / "a/one two.bin").read_bytes() == (made.folder / "b.bin").read_bytes() == LARGE
    assert (made.folder / "b.bin").stat().st_mode & 0o777 == 0o755
    assert ((made.folder / "no.bin").read_text(), (made.folder / "text").read_text()) == ("plain", text)
    assert git(made.folder, "status", "--porcelain") == ""
    assert git(made.folder, "describe", "--always", "--dirty") == commit[:7]
    assert len([path for path, _ in server.seen if path.endswith("batch")]) == 1
    asked = len(server.seen)
    again = await check_out(agent, base, commit)
    assert len(server.seen) == asked
    (again.folder / "b.bin").write_bytes(b"spoilt by the job")
    third = await check_out(agent, base, commit)
    assert (third.folder / "b.bin").read_bytes() == LARGE
    assert {file.lstat().st_nlink for file in third.folder.rglob("*") if file.is_file()} == {1}


async def test_left_out_a_pointer_stays_a_pointer(
    agent: Agent, server: FakeLfs, base: str, repository: Repository
) -> None:
    """And a commit without large files asks nobody."""
    text = server.keep(LARGE)
    made = await check_out(agent, base, repository.commit({**LFS, "a.bin": text}), Checkout())
    assert (made.folder / "a.bin").read_text() == text
    made = await check_out(agent, base, repository.commit({"a.bin": "1", ".gitattributes": ""}))
    assert (made.notes, server.seen) == (("large files: none",), [])


async def test_submodules_have_large_files_of_their_own(
    agent: Agent, server: FakeLfs, base: str, repository: Repository
) -> None:
    """Each is asked for beside the URL of its own repository."""
    lib = Repository(repository.path.parent / "lib")
    lib.commit({**LFS, "big.bin": server.keep(LARGE)})
    git(repository.path, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(lib.path), "lib")
    repository.git("config", "--file", ".gitmodules", "submodule.lib.url", "../../lib/.git")
    commit = repository.commit({**LFS, "own.bin": server.keep(b"own" * 100)})
    made = await check_out(agent, base, commit, Checkout(submodules=True, lfs=True))
    assert (made.folder / "lib/big.bin").read_bytes() == LARGE
    assert made.notes[-1] == "large files: 2, 300,300 bytes"
    assert {path.partition("/info")[0] for path, _ in server.seen} == {"/shop/.git", "/lib/.git"}
    assert git(made.folder, "status", "--porcelain") == ""


async def test_the_repository_chooses_neither_server_nor_program(
    agent: Agent, server: FakeLfs, base: str, repository: Repository, tmp_path: Path
) -> None:
    """`.lfsconfig` may name another server, leave files out, or let a failure pass: none of it is read."""
    program = tmp_path / "evil.sh"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    config = (
        "[lfs]\n\turl = http://127.0.0.1:1/evil\n\tfetchexclude = *\n\tskipdownloaderrors = true\n"
        f'\tstandalonetransferagent = x\n[lfs "customtransfer.x"]\n\tpath = {program}\n'
        f'[lfs "extension.x"]\n\tclean = {program}\n\tsmudge = {program}\n[filter "lfs"]\n\tsmudge = {program}\n'
    )
    for name in ("filter.lfs.smudge", "filter.lfs.clean", "filter.lfs.process"):
        repository.git("config", name, str(program))
    repository.git("config", "lfs.url", "http://127.0.0.1:1/evil")
    text = server.keep(LARGE)
    (repository.path / ".git/info/attributes").write_text("* -filter\n")
    commit = repository.commit({**LFS, ".lfsconfig": config, "a.bin": text})
    (tmp_path / "ran").unlink(missing_ok=True)
    made = await check_out(agent, base, commit)
    assert (made.folder / "a.bin").read_bytes() == LARGE
    assert git(made.folder, "status", "--porcelain") == ""
    assert not (tmp_path / "ran").exists()


async def test_a_url_with_credentials_uses_them_and_shows_them_nowhere(
    agent: Agent, server: FakeLfs, base: str, repository: Repository
) -> None:
    """They lie in no file either."""
    server.wants_password = True
    commit = repository.commit({**LFS, "a.bin": server.keep(LARGE)})
    url = f"{base.replace('//', '//ana:secret@')}/shop/.git"
    assert (await check_out(agent, base, commit, url=url)).notes
    found = [file for file in agent.state.rglob("*") if file.is_file() and b"secret" in file.read_bytes()]
    assert found == []
    missing = repository.commit({"b.bin": pointer("ab" * 32, 5)})
    assert "secret" not in await refused(agent, base, missing, url=url)


async def test_a_server_that_wants_a_password_is_named_and_not_asked_for_ever(
    agent: Agent, server: FakeLfs, base: str, repository: Repository
) -> None:
    """There is nobody at the agent who could type one."""
    server.wants_password = True
    said = await refused(agent, base, repository.commit({**LFS, "a.bin": server.keep(LARGE)}))
    assert f"cannot be fetched from {base}/shop/.git: git LFS says: could not read Username" in said


async def test_an_object_that_the_server_lacks_is_named(
    agent: Agent, server: FakeLfs, base: str, repository: Repository
) -> None:
    """Somebody pushed the commit and not the file."""
    commit = repository.commit({**LFS, "a.bin": server.keep(LARGE), "b.bin": pointer("ab" * 32, 5)})
    assert await refused(agent, base, commit) == (
        f"Commit {commit[:12]}: the large file b.bin (sha256 abababababab, 5 bytes) cannot be fetched from "
        f"{base}/shop/.git: git LFS says: Object does not exist: [404] Object does not exist."
    )


@pytest.mark.parametrize("what", ["spoilt", "size", "without_end"])
async def test_other_bytes_than_the_pointers_are_refused(
    what: str, agent: Agent, server: FakeLfs, base: str, repository: Repository
) -> None:
    """Digest and size both count, and one that sends without end is cut off."""
    text = server.keep(LARGE)
    if what == "size":
        text = text.replace("size 300000", "size 299999")
    else:
        setattr(server, what, True)
    said = await refused(agent, base, repository.commit({**LFS, "a.bin": text}))
    assert "the large file a.bin" in said
    assert "cannot be fetched from" in said
    kept = [file for file in agent.state.glob("mirrors/*/large/**/*") if file.is_file()]
    assert sum(file.stat().st_size for file in kept) <= len(LARGE)
    assert server.sent < 64 << 20


async def test_more_than_the_limit_is_refused_before_anything_is_fetched(
    agent: Agent, server: FakeLfs, base: str, repository: Repository
) -> None:
    """A pointer may claim any size, and many small ones add up."""
    commit = repository.commit({**LFS, "a.bin": pointer("ab" * 32, 10**18)})
    assert await refused(agent, base, commit) == (
        f"Commit {commit[:12]}: the large files of the checkout have 1,000,000,000,000,000,000 bytes together (a.bin "
        "alone 1,000,000,000,000,000,000), and HEADRACE_LFS_LIMIT of this agent allows 1,048,576."
    )
    text = server.keep(LARGE)
    commit = repository.commit({f"{n}.bin": text for n in range(4)} | {"a.bin": "x"})
    assert "1,200,000 bytes together" in await refused(agent, base, commit)
    assert server.seen == []


async def test_a_pointer_that_needs_a_program_is_refused(agent: Agent, base: str, repository: Repository) -> None:
    """Extensions of git LFS are programs; the commit cannot bring one."""
    text = pointer("ab" * 32, 5).replace("oid", f"ext-0-evil sha256:{'ab' * 32}\noid")
    commit = repository.commit({**LFS, "a.bin": text})
    assert await refused(agent, base, commit) == (
        f"Commit {commit[:12]}: a.bin cannot be fetched: its pointer needs an extension of git LFS, and none is run "
        "here."
    )


async def test_a_link_is_not_followed_when_a_large_file_is_written(
    agent: Agent, server: FakeLfs, base: str, repository: Repository, tmp_path: Path
) -> None:
    """A link whose target reads like a pointer is a link, and stays one."""
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (repository.path / "a.bin").symlink_to(outside)
    commit = repository.commit({**LFS, "b.bin": server.keep(LARGE)})
    made = await check_out(agent, base, commit)
    assert (made.folder / "a.bin").is_symlink()
    assert outside.read_text() == "mine"


async def test_nor_is_one_on_the_way_to_a_large_file(
    agent: Agent, server: FakeLfs, base: str, repository: Repository, tmp_path: Path
) -> None:
    """A tree with one name twice, as a link and as a folder: whichever git takes, nothing outside is written."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.bin").write_text("mine")
    inner = _tree(repository, [("100644", "blob", _blob(repository, server.keep(LARGE).encode()), "a.bin")])
    attributes = ("100644", "blob", _blob(repository, LFS[".gitattributes"].encode()), ".gitattributes")
    twice = [("120000", "blob", _blob(repository, str(outside).encode()), "d"), ("40000", "tree", inner, "d")]
    for order in (1, -1):
        tree = _tree(repository, [attributes, *twice[::order]])
        with contextlib.suppress(JobProblem):  # git may refuse it
            await check_out(agent, base, repository.git("commit-tree", "-m", "evil", tree))
        assert (outside / "a.bin").read_text() == "mine"


async def test_checkouts_at_once_download_once(
    agent: Agent, server: FakeLfs, base: str, repository: Repository
) -> None:
    """Several slots start jobs of one run at the same moment."""
    commit = repository.commit({**LFS, "a.bin": server.keep(LARGE)})
    made = await asyncio.gather(*(check_out(agent, base, commit) for _ in range(4)))
    assert [(each.folder / "a.bin").read_bytes() == LARGE for each in made] == [True] * 4
    assert len([path for path, _ in server.seen if path.endswith("batch")]) == 1


async def test_without_git_lfs_the_sentence_says_how_to_mend_it(
    server: FakeLfs, base: str, repository: Repository, tmp_path: Path
) -> None:
    """It is optional on an agent."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").symlink_to("/usr/bin/git")
    (tmp_path / "bare").mkdir()
    agent = Agent(tmp_path / "bare", git=Git(tmp_path / "bare" / "git", {"PATH": str(tmp_path / "bin")}))
    commit = repository.commit({**LFS, "a.bin": server.keep(LARGE)})
    assert await refused(agent, base, commit) == (
        f"Commit {commit[:12]}: it has a large file, and git-lfs is not installed on this agent: "
        "`apt-get install git-lfs` there."
    )


@pytest.mark.root
async def test_a_disk_that_is_too_small_is_said_before_it_is_full(
    server: FakeLfs, base: str, repository: Repository, tmp_path: Path
) -> None:
    """A full disk would harm every other job of the agent."""
    small = tmp_path / "small"
    small.mkdir()
    await _run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small))
    try:
        agent = Agent(small, lfs_limit=1 << 30)
        commit = repository.commit({**LFS, "a.bin": server.keep(bytes(3_000_000))})
        said = await refused(agent, base, commit)
        assert said.startswith(f"Commit {commit[:12]}: its large files need 3,000,000 bytes, and the agent's disk has ")
    finally:
        await _run("umount", str(small))


async def _run(*words: str) -> None:
    assert await (await asyncio.create_subprocess_exec(*words)).wait() == 0


async def test_what_was_damaged_on_the_agents_disk_is_noticed_and_fetched_anew(
    agent: Agent, server: FakeLfs, base: str, repository: Repository
) -> None:
    """A job must not build from rotten bytes, nor must every later one fail."""
    commit = repository.commit({**LFS, "a.bin": server.keep(LARGE)})
    await check_out(agent, base, commit)
    stored = agent.mirror.large / "objects" / hashlib.sha256(LARGE).hexdigest()[:2]
    file = next(path for path in stored.rglob("*") if path.is_file())
    file.chmod(0o644)
    file.write_bytes(bytes(len(LARGE)))
    with pytest.raises(JobProblem, match=r"the large file a\.bin was damaged on the agent's disk and is gone now"):
        await check_out(agent, base, commit)
    assert ((await check_out(agent, base, commit)).folder / "a.bin").read_bytes() == LARGE


async def test_large_files_that_nobody_used_for_long_go(
    agent: Agent, server: FakeLfs, base: str, repository: Repository
) -> None:
    """The mirror itself may be in use every day."""
    commit = repository.commit({**LFS, "a.bin": server.keep(LARGE)})
    made = await check_out(agent, base, commit)
    now = made.folder.stat().st_mtime
    file = next(path for path in (agent.mirror.large / "objects").rglob("*") if path.is_file())
    assert agent.mirrors.remove_unused(lambda: now, 1000.0) == []
    os.utime(file, (now - 2000, now - 2000))
    assert agent.mirrors.remove_unused(lambda: now, 1000.0) == [file]


async def test_a_checkout_cancelled_in_the_midst_of_a_large_file_leaves_no_folder_and_loses_no_good_file(
    server: FakeLfs, base: str, repository: Repository, tmp_path: Path
) -> None:
    """A canceled run must not cost the next one its large files."""
    (tmp_path / "state").mkdir()
    agent = Agent(tmp_path / "state", lfs_limit=1 << 30)
    commit = repository.commit({**LFS, "a.bin": server.keep(bytes(200 << 20))})
    await check_out(agent, base, commit)
    task = asyncio.create_task(check_out(agent, base, commit))
    written = agent.state / "workspace2" / "a.bin"
    while not (written.exists() and written.stat().st_size > 1024):  # noqa: ASYNC110 - a thread writes it
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not written.parent.exists()
    asked = len(server.seen)
    await check_out(agent, base, commit)
    assert len(server.seen) == asked


# --- on this machine ------------------------------------------------------------------------------------------


@pytest.fixture
def clone(repository: Repository) -> Repository:
    """A repository of a user who has git LFS: files are cleaned when they are added."""
    for name, value in {"clean": "git-lfs clean -- %f", "smudge": "git-lfs smudge -- %f", "required": "true"}.items():
        repository.git("config", f"filter.lfs.{name}", value)
    return repository


async def test_a_local_run_takes_large_files_from_the_users_own_clone(agent: Agent, clone: Repository) -> None:
    """Offline, never pushed, without git-lfs on the agent's side: they lie in its `.git/lfs`."""
    commit = clone.commit({**LFS, "a.bin": LARGE})
    assert clone.git("cat-file", "blob", f"{commit}:a.bin").startswith("version https://git-lfs")
    known = await upstream_of_path(agent.git, clone.path)
    made = await agent.check_out(Origin.of_path(clone.path), commit, WITH, upstream=known)
    assert (made.folder / "a.bin").read_bytes() == LARGE
    assert git(made.folder, "status", "--porcelain") == ""


async def test_a_clone_of_a_local_repository_finds_what_lies_there(
    agent: Agent, clone: Repository, tmp_path: Path
) -> None:
    """Cloned without git LFS, so that its own store is empty; and by a file URL."""
    commit = clone.commit({**LFS, "a.bin": LARGE})
    git(tmp_path, "clone", "-q", str(clone.path), "second")
    known = await upstream_of_path(agent.git, tmp_path / "second")
    made = await agent.check_out(Origin.of_path(tmp_path / "second"), commit, WITH, upstream=known)
    assert (made.folder / "a.bin").read_bytes() == LARGE
    url = f"file://{clone.path}"
    made = await agent.check_out(Origin.of_url(url), commit, WITH, upstream=Upstream(url, local=True))
    assert (made.folder / "a.bin").read_bytes() == LARGE


async def test_what_the_clone_lacks_comes_from_where_it_was_cloned_from(
    agent: Agent, server: FakeLfs, base: str, repository: Repository
) -> None:
    """And where there is nothing to be had, the sentence names the command."""
    commit = repository.commit({**LFS, "a.bin": server.keep(LARGE)})
    wrong = repository.path / ".git/lfs" / "objects" / hashlib.sha256(LARGE).hexdigest()[:2]
    wrong = wrong / hashlib.sha256(LARGE).hexdigest()[2:4] / hashlib.sha256(LARGE).hexdigest()
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(bytes(len(LARGE)))
    path = Origin.of_path(repository.path)
    known = await upstream_of_path(agent.git, repository.path)
    with pytest.raises(JobProblem, match=r"a\.bin is not in .*/\.git/lfs: run `git lfs fetch` in that repository"):
        await agent.check_out(path, commit, WITH, upstream=known)
    repository.git("config", "remote.origin.url", f"{base}/shop/.git")
    known = await upstream_of_path(agent.git, repository.path)
    made = await agent.check_out(path, commit, WITH, upstream=known)
    assert (made.folder / "a.bin").read_bytes() == LARGE


async def test_a_bundle_has_no_large_files(agent: Agent, clone: Repository, tmp_path: Path) -> None:
    """Git's bundles hold pointers alone."""
    commit = clone.commit({**LFS, "a.bin": LARGE})
    clone.git("bundle", "create", "--quiet", str(tmp_path / "b"), "main")
    with pytest.raises(JobProblem, match=r"a\.bin is not in the bundle that this run came as: push .* `--repo URL`"):
        await agent.check_out(Origin.of_bundle(tmp_path / "b"), commit, WITH)
