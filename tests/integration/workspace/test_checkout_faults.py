"""Mirror and workspace against hostile repositories, damage, and cancellation."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from agent.problems import JobProblem
from agent.workspace.mirror import Mirror, Origin
from agent.workspace.removal import hand_over
from tests.harness.git_repo import ENVIRONMENT, Repository, git
from tests.integration.workspace.bench import Agent


def _everything_that_could_run(repository: Repository, marker: Path) -> None:
    """A repository whose owner tries every hook and command that its configuration can name."""
    program = repository.path.parent / "evil.sh"
    program.write_text(f"#!/bin/sh\necho $0 >>{marker}\ncat\n")
    program.chmod(0o755)
    hooks = repository.path / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-checkout", "pre-auto-gc", "post-index-change", "reference-transaction", "post-merge"):
        shutil.copy(program, hooks / name)
    for name, value in {
        "core.fsmonitor": program,
        "core.sshCommand": program,
        "core.gitProxy": program,
        "core.hooksPath": hooks,
        "core.alternateRefsCommand": program,
        "core.pager": program,
        "uploadpack.packObjectsHook": program,
        "filter.evil.smudge": program,
        "filter.evil.clean": program,
        "filter.evil.process": program,
        "filter.lfs.smudge": program,
        "diff.external": program,
        "gpg.program": program,
        "credential.helper": f"!{program}",
        "uploadpack.allowAnySHA1InWant": "false",
    }.items():
        repository.git("config", name, str(value))


@pytest.mark.parametrize("way", ["path", "bundle"])
async def test_nothing_that_the_source_repository_names_is_executed(
    way: str, agent: Agent, repository: Repository, tmp_path: Path
) -> None:
    """Its configuration, hooks and attributes are a stranger's; the agent may be root."""
    marker = tmp_path / "ran"
    commit = repository.commit(
        {".gitattributes": "* filter=evil diff=evil merge=evil\nb filter=lfs", "a": "1", "b": "2"}
    )
    _everything_that_could_run(repository, marker)
    git(repository.path, "-c", "core.hooksPath=/dev/null", "bundle", "create", "-q", str(tmp_path / "b"), "HEAD")
    marker.unlink(missing_ok=True)
    origin = Origin.of_path(repository.path if way == "path" else tmp_path / "b")
    made = await agent.check_out(origin, commit)
    assert (made.folder / "a").read_text() == "1"
    assert not marker.exists(), marker.read_text()
    git(repository.path, "status")  # the trap itself works
    assert marker.exists()


@pytest.mark.root
async def test_a_repository_of_another_user_is_read_by_a_root_agent_and_no_other_is(
    agent: Agent, repository: Repository
) -> None:
    """Git refuses foreign repositories; ours names exactly the one it was asked for."""
    commit = repository.commit({"a": "1"})
    await asyncio.to_thread(hand_over, repository.path, 65534, 65534)
    with pytest.raises(AssertionError, match="dubious ownership"):
        repository.git("log")
    made = await agent.check_out(Origin.of_path(repository.path), commit)
    assert (made.folder / "a").read_text() == "1"
    with pytest.raises(JobProblem, match="dubious ownership"):
        await agent.mirrors.of("other", trusted=True).fetch(
            Origin(str(repository.path), ("file",), local=agent.state), commit
        )


async def test_a_linked_worktree_is_a_source_like_any_other(agent: Agent, repository: Repository) -> None:
    """Its `.git` is a file that names another folder, and its head may be on no branch."""
    repository.commit({"a": "1"})
    linked = repository.path.parent / "linked"
    repository.git("worktree", "add", "--quiet", "--detach", str(linked))
    (linked / "a").write_text("2")
    git(linked, "commit", "--quiet", "-am", "detached")
    made = await agent.check_out(Origin.of_path(linked), git(linked, "rev-parse", "HEAD"))
    assert (made.folder / "a").read_text() == "2"


@pytest.mark.parametrize("damage", ["blob", "object", "everything", "head"])
async def test_a_damaged_mirror_is_made_anew_once(damage: str, agent: Agent, repository: Repository) -> None:
    """A disk error in the mirror must not fail every job of the project from now on."""
    repository.commit({"a": os.urandom(5000)})
    commit = repository.commit({"b": os.urandom(5000)})
    await agent.check_out(Origin.of_path(repository.path), commit)
    objects = agent.mirror.objects
    if damage == "blob":  # seen by nobody before the checkout itself
        for index in objects.glob("pack/*.idx"):
            for line in git(objects, "verify-pack", "-v", str(index)).splitlines():
                _, kind, _, _, offset, *_ = [*line.split(), "", "", "", "", ""]
                if kind == "blob":
                    pack = index.with_suffix(".pack")
                    content = bytearray(pack.read_bytes())
                    content[int(offset) + 100 : int(offset) + 200] = bytes(100)
                    pack.chmod(0o644)
                    pack.write_bytes(content)
    elif damage == "object":
        for pack in objects.glob("pack/*.pack"):
            content = bytearray(pack.read_bytes())
            content[200:9000] = bytes(8800)
            pack.chmod(0o644)
            pack.write_bytes(content)
    elif damage == "everything":
        shutil.rmtree(objects)
        objects.mkdir()
    else:
        (agent.mirror.place.git_dir / "HEAD").write_text("rubbish")
    made = await agent.check_out(Origin.of_path(repository.path), commit)
    assert (made.folder / "b").stat().st_size == 5000
    git(agent.mirror.place.git_dir, "fsck", "--full")


async def test_checkouts_of_one_project_at_once_fetch_once(agent: Agent, repository: Repository) -> None:
    """Several slots start jobs of one run at the same moment."""
    commit = repository.commit({"a": os.urandom(1000)})
    made = await asyncio.gather(*(agent.check_out(Origin.of_path(repository.path), commit) for _ in range(6)))
    assert sorted(w.fetched.objects for w in made) == [0, 0, 0, 0, 0, 3]


async def test_old_commits_are_let_go_of_by_number_and_trusts_are_apart(agent: Agent, repository: Repository) -> None:
    """A mirror must not grow for ever; an untrusted run must not plant objects in a trusted mirror."""
    kept = agent.mirror.place.git_dir / "refs" / "headrace"
    for number in range(5):
        await agent.mirror.fetch(Origin.of_path(repository.path), repository.commit({"a": str(number)}))
    assert len(list(kept.iterdir())) == 3
    assert repository.git("rev-parse", "HEAD") in {ref.name for ref in kept.iterdir()}
    untrusted = agent.mirrors.of("shop", trusted=False)
    assert isinstance(untrusted, Mirror)
    assert untrusted.objects != agent.mirror.objects
    assert agent.mirrors.remove_unused(lambda: 4e9, 1.0)
    assert not agent.mirror.objects.exists()


async def test_many_small_packs_are_folded_while_a_job_reads_them(agent: Agent, repository: Repository) -> None:
    """Each fetch brings a pack, and git looks through all of them; who borrows from them must not notice.

    Nor when the commit is one that the mirror has let go of since, and to which nothing else leads.
    """
    trees = [_tree(repository, [("100644", "blob", _blob(repository, b"%d" % n), "a")]) for n in range(45)]
    commits = [repository.git("commit-tree", "-m", "alone", tree) for tree in trees]
    workspace = await agent.check_out(Origin.of_path(repository.path), commits[0])
    reader = await asyncio.create_subprocess_exec(
        *("git", "-C", str(workspace.folder), "cat-file", "--batch-check"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    reader.stdin.write(f"{commits[0]}\n".encode())
    assert (await reader.stdout.readline()).startswith(commits[0].encode())
    for commit in commits[1:]:
        await agent.mirror.fetch(Origin.of_path(repository.path), commit)
    assert len(list(agent.mirror.objects.glob("pack/*.pack"))) < 20
    reader.stdin.write("".join(f"{commit}^{{tree}}\n" for commit in commits).encode())
    reader.stdin.close()
    told = (await reader.stdout.read()).decode().splitlines()
    assert (len(told), [line for line in told if " tree " not in line]) == (45, [])
    assert await reader.wait() == 0
    git(agent.mirror.place.git_dir, "fsck", "--full")


async def test_a_cancelled_checkout_leaves_no_process_lock_or_folder(agent: Agent, repository: Repository) -> None:
    """A canceled run must not hold up the next one."""
    commit = repository.commit({"a": "1"})
    writers: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    listener = await asyncio.start_server(lambda _, writer: writers.put_nowait(writer), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    hanging = asyncio.create_task(agent.check_out(Origin.of_url(f"git://127.0.0.1:{port}/x"), commit))
    async with listener:
        writer = await asyncio.wait_for(writers.get(), 10)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        writer.close()
        await writer.wait_closed()
    assert not (agent.state / "workspace1").exists()
    running = await asyncio.create_subprocess_exec("ps", "-eo", "args", stdout=asyncio.subprocess.PIPE)
    assert f"git://127.0.0.1:{port}".encode() not in (await running.communicate())[0]
    made = await agent.check_out(Origin.of_path(repository.path), commit)
    assert (made.folder / "a").exists()


async def test_a_hostile_tree_cannot_write_outside_or_into_its_git_folder(agent: Agent, repository: Repository) -> None:
    """`.GIT/config` and `git~1` are `.git` on some disks, and a link may stand where a folder follows."""
    blob = _blob(repository, b"[core]\n\tpager = evil\n")
    for name in (".git", ".GIT", "git~1", ".git\u200c"):
        inner = _tree(repository, [("100644", "blob", blob, "config")])
        tree = _tree(repository, [("40000", "tree", inner, name)])
        commit = repository.git("commit-tree", "-m", "evil", tree)
        with pytest.raises(JobProblem, match="cannot be checked out"):
            await agent.check_out(Origin.of_path(repository.path), commit)
    assert stat.S_ISDIR(agent.mirror.objects.stat().st_mode)


def _blob(repository: Repository, content: bytes) -> str:
    done = subprocess.run(
        ["git", "-C", repository.path, "hash-object", "-w", "--stdin"],
        input=content,
        capture_output=True,
        check=True,
        env=ENVIRONMENT,
    )
    return done.stdout.decode().strip()


def _tree(repository: Repository, entries: list[tuple[str, str, str, str]]) -> str:
    """A tree object with names that `git mktree` would take but `git add` would not."""
    raw = b"".join(f"{mode} {name}".encode() + b"\0" + bytes.fromhex(h) for mode, _, h, name in entries)
    done = subprocess.run(
        ["git", "-C", repository.path, "hash-object", "-w", "-t", "tree", "--literally", "--stdin"],
        input=raw,
        capture_output=True,
        check=True,
        env=ENVIRONMENT,
    )
    return done.stdout.decode().strip()
