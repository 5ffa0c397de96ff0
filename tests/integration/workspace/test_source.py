"""What a user asks to build, resolved to a commit, with the user's repository left as it was."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from agent.source import Sources
from agent.workspace.checkout import Checkouts, Wanted
from agent.workspace.git import Git
from agent.workspace.mirror import Mirrors, Origin
from headrace.cli.source import NoSuchFile, Source, SourceError, in_repository, make_bundle, resolve
from headrace.pipeline.plan import Checkout
from headrace.v1 import common_pb2 as pb
from tests.harness.git_repo import ENVIRONMENT, Repository, fingerprint, git, git_daemon, http_backend

Resolve = Callable[..., Source]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "shop")


@pytest.fixture
def ask(tmp_path: Path) -> Resolve:
    """`headrace run --repo REPO --ref REF`, as far as the source goes."""

    def asked(repo: Path | str | None = None, ref: str | None = None, cwd: Path = tmp_path, **extra: str) -> Source:
        where = None if repo is None else str(repo)
        return resolve(where, ref, cwd, state=tmp_path / "state" / "sources", environment={**ENVIRONMENT, **extra})

    return asked


async def built(source: Source, tmp_path: Path, origin: Origin | None = None) -> Path:
    """What an agent makes of it."""
    runner = Git(tmp_path / "agent" / "git", {})
    checkouts = Checkouts(runner, Mirrors(runner, tmp_path / "agent" / "mirrors"), lfs_limit=1 << 20)
    where = origin or (Origin.of_url if source.is_url else lambda p: Origin.of_path(Path(p)))(source.fetch_from)
    folder = tmp_path / "agent" / "workspace"
    folder.parent.mkdir(exist_ok=True)
    wanted = Wanted(source.repository, where, source.commit, Checkout())
    await checkouts.make(wanted, folder, owner=None, is_host=True)
    return folder


async def test_what_is_on_disk_is_built_and_the_users_repository_stays_untouched(
    repository: Repository, ask: Resolve, tmp_path: Path
) -> None:
    """Edited, staged, new, removed, ignored, executable: as `git add --all` sees it, byte for byte beside it."""
    repository.commit({"edited": "1", "staged": "1", "removed": "1", "same": "1", ".gitignore": "*.log"})
    repository.git("tag", "-a", "v1", "-m", "one")
    (repository.path / "edited").write_text("2")
    (repository.path / "staged").write_text("2")
    repository.git("add", "staged")
    (repository.path / "staged").write_text("3")
    (repository.path / "removed").unlink()
    (repository.path / "new dir").mkdir()
    (repository.path / "new dir" / "tüte").write_text("n")
    (repository.path / "noise.log").write_text("n")
    (repository.path / "same").chmod(0o755)
    before = fingerprint(repository.path)
    source = ask(repository.path)
    assert fingerprint(repository.path) == before
    head = repository.git("rev-parse", "HEAD")
    assert source.description == f"{head[:7]} + 5 changed files"
    assert (source.branch, source.repository, source.is_url) == ("main", str(repository.path), False)
    assert source.read_file("./edited") == b"2"
    folder = await built(source, tmp_path)
    assert (folder / "staged").read_text() == "3"
    assert (folder / "new dir" / "tüte").read_text() == "n"
    assert not (folder / "removed").exists()
    assert not (folder / "noise.log").exists()
    assert os.access(folder / "same", os.X_OK)
    assert git(folder, "status", "--porcelain") == ""
    assert git(folder, "rev-parse", "HEAD^") == head
    assert git(folder, "describe").startswith("v1-1-g")


def test_the_same_tree_is_the_same_commit(repository: Repository, ask: Resolve) -> None:
    """Nothing is built in vain."""
    repository.commit({"a": "one"})
    (repository.path / "a").write_text("two")
    assert ask(repository.path).commit == ask(repository.path).commit


def test_an_edit_as_young_as_the_index_is_seen(repository: Repository, ask: Resolve) -> None:
    """Git reads again what changed in the index's own instant: a copy of the index must not look younger."""
    repository.git("config", "core.trustctime", "false")
    moment = (1_700_000_000_000_000_000, 1_700_000_000_000_000_000)
    file, index = repository.path / "a", repository.path / ".git" / "index"
    file.write_text("one")
    os.utime(file, ns=moment)
    repository.git("add", "a")
    os.utime(index, ns=moment)
    file.write_text("two")
    os.utime(file, ns=moment)
    assert ask(repository.path).read_file("a") == b"two"


def test_a_clean_work_tree_is_its_own_commit(repository: Repository, ask: Resolve) -> None:
    """No commit is invented where one stands for the same files."""
    commit = repository.commit({"a": "1"})
    source = ask(None, cwd=repository.path)
    assert (source.commit, source.description) == (commit, commit[:7])
    assert source.fetch_from == str(repository.path / ".git")


async def test_a_repository_without_a_commit_can_be_built(repository: Repository, ask: Resolve, tmp_path: Path) -> None:
    """The very first thing that a newcomer does: `git init`, a file, `headrace run`."""
    (repository.path / "headrace.yml").write_text("jobs: {}")
    source = ask(repository.path)
    assert source.description == "no commit yet + 1 changed file"
    assert source.commit == ask(repository.path).commit
    assert ((await built(source, tmp_path)) / "headrace.yml").exists()
    with pytest.raises(SourceError, match="no branch, tag or commit main"):
        ask(repository.path, "main")


def test_subfolders_worktrees_and_submodules_are_understood(repository: Repository, ask: Resolve) -> None:
    """The project is the same from all of a repository's worktrees; a submodule is a project of its own."""
    repository.commit({"sub/a": "1"})
    linked = repository.path.parent / "linked"
    repository.git("worktree", "add", "--quiet", str(linked), "-b", "side")
    (linked / "sub" / "a").write_text("linked")
    (repository.path / "sub" / "a").write_text("main")
    inner = Repository(repository.path.parent / "inner")
    inner.commit({"x": "1"})
    repository.git("-c", "protocol.file.allow=always", "submodule", "add", "--quiet", str(inner.path), "mod")
    before = fingerprint(repository.path)
    by_path = ask(None, cwd=repository.path / "sub")
    by_link = ask(linked / "sub")
    submodule = ask(repository.path / "mod")
    assert fingerprint(repository.path) == before
    assert by_path.read_file("sub/a") == b"main"
    assert (by_link.read_file("sub/a"), by_link.branch) == (b"linked", "side")
    assert by_link.repository == by_path.repository == str(repository.path)
    assert submodule.repository == str(repository.path / "mod")
    assert submodule.read_file("x") == b"1"


def test_the_folder_git_keeps_its_own_files_in_means_the_work_tree_around_it(
    repository: Repository, ask: Resolve
) -> None:
    """A path that ends in `.git` is what a person copies from a remote's configuration."""
    repository.commit({"a": "1"})
    assert ask(repository.path / ".git") == ask(repository.path)


@pytest.mark.parametrize(
    ("file", "found"), [("ci.yml", "ci.yml"), ("../ci.yml", "ci.yml"), ("../sub/./x.yml", "sub/x.yml"), ("/", "ci.yml")]
)
def test_a_file_is_named_from_the_top_or_as_it_is_seen_from_here(
    repository: Repository, ask: Resolve, file: str, found: str
) -> None:
    """`../ci.yml` is what the shell completes in a subfolder, and an absolute path is one all the same."""
    repository.commit({"ci.yml": "1", "sub/x.yml": "2"})
    sub = repository.path / "sub"
    named = str(repository.path / "ci.yml") if file == "/" else file
    assert in_repository(named, ask(repository.path), sub) == found
    with pytest.raises(SourceError, match="not inside the repository"):
        in_repository("../../other.yml", ask(repository.path), sub)


def test_a_file_that_is_missing_on_disk_is_not_missing_in_a_commit_that_nobody_made(
    repository: Repository, ask: Resolve
) -> None:
    """The snapshot's hash is ours: a person who looks for it finds nothing."""
    commit = repository.commit({"a": "1"})
    with pytest.raises(NoSuchFile, match=rf"There is no file ci\.yml in {commit[:7]}"):
        ask(repository.path).read_file("ci.yml")
    (repository.path / "b").write_text("2")
    with pytest.raises(NoSuchFile, match=r"There is no file ci\.yml in what is on disk"):
        ask(repository.path).read_file("ci.yml")


def test_variables_of_a_running_hook_do_not_mislead(repository: Repository, ask: Resolve) -> None:
    """`headrace run` in a pre-push hook finds GIT_DIR and GIT_INDEX_FILE of that hook."""
    repository.commit({"a": "1"})
    other = Repository(repository.path.parent / "other")
    other.commit({"a": "other"})
    source = ask(repository.path, GIT_DIR=str(other.path / ".git"), GIT_INDEX_FILE=str(other.path / ".git/index"))
    assert source.read_file("a") == b"1"


def test_the_repositorys_hooks_and_monitors_do_not_run(repository: Repository, ask: Resolve, tmp_path: Path) -> None:
    """A monitor daemon would outlive the command and write below `.git`."""
    program = tmp_path / "evil.sh"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    repository.commit({"a": "1"})
    for name in ("core.fsmonitor", "core.sshCommand", "core.pager"):
        repository.git("config", name, str(program))
    repository.git("config", "core.splitIndex", "true")
    repository.git("config", "core.untrackedCache", "true")
    (repository.path / "a").write_text("2")
    before = fingerprint(repository.path)
    assert ask(repository.path).read_file("a") == b"2"
    assert fingerprint(repository.path) == before
    assert not (tmp_path / "ran").exists()


def test_a_ref_is_a_branch_a_tag_or_a_commit(repository: Repository, ask: Resolve) -> None:
    """And what is on disk then does not count."""
    first = repository.commit({"a": "1"})
    repository.git("tag", "-a", "v1", "-m", "one")
    second = repository.commit({"a": "2"})
    (repository.path / "a").write_text("dirty")
    for ref, commit, branch, tag in (
        ("main", second, "main", ""),
        ("v1", first, "", "v1"),
        (first, first, "", ""),
        (first[:8], first, "", ""),
        ("HEAD~1", first, "", ""),
    ):
        source = ask(repository.path, ref)
        assert (source.commit, source.branch, source.tag) == (commit, branch, tag)
    assert ask(repository.path, "v1").read_file("a") == b"1"


@pytest.mark.parametrize("serve", [git_daemon, http_backend])
async def test_a_url_gives_its_head_or_the_ref_asked_for(
    serve: Callable[..., object], repository: Repository, ask: Resolve, tmp_path: Path
) -> None:
    """Over both kinds of server, including a commit that no ref names."""
    first = repository.commit({"a": "1"})
    repository.git("tag", "-a", "v1", "-m", "one")
    second = repository.commit({"a": "2"})
    with serve(repository.path.parent) as served:  # type: ignore[attr-defined]  # either context manager
        url = (served if isinstance(served, str) else served[0]) + "/shop/.git"
        newest = ask(url)
        assert (newest.commit, newest.branch, newest.repository, newest.is_url) == (second, "main", url, True)
        assert newest.read_file("a") == b"2"
        tagged = ask(url, "v1")
        assert (tagged.commit, tagged.tag, tagged.read_file("a")) == (first, "v1", b"1")
        assert ask(url, first).read_file("a") == b"1"
        assert ask(url, second[:9]).commit == second
        assert ((await built(newest, tmp_path)) / "a").read_text() == "2"
        with pytest.raises(SourceError, match=r"no branch, tag or commit mian in .* Did you mean main\?"):
            ask(url, "mian")
        with pytest.raises(SourceError, match="has it been pushed"):
            ask(url, "f" * 40)


def test_mistakes_are_one_sentence_with_the_mend(repository: Repository, ask: Resolve, tmp_path: Path) -> None:
    """Exit code 2 or 3, no traceback, no password."""
    (tmp_path / "empty").mkdir()
    repository.commit({"a": "1"})
    repository.git("branch", "release")
    for repo, ref, sentence in (
        (tmp_path / "empty", None, "There is no git repository at .*git init"),
        (tmp_path / "none", None, "There is no folder"),
        (repository.path, "relaese", "Did you mean release"),
        (repository.path, "--help", "is no ref"),
        ("http://ana:secret@127.0.0.1:1/x", None, "http://127.0.0.1:1/x cannot be reached: git says: .*onnect"),
        ("git://127.0.0.1:1/x", None, "cannot be reached: git says: unable to connect .*Connection refused"),
        ("ext::sh -c id", None, "come from a path, http"),
        ("ftp://host/x", None, "come from a path, http"),
    ):
        with pytest.raises(SourceError, match=sentence) as caught:
            ask(repo, ref)
        assert "secret" not in str(caught.value)
    with pytest.raises(NoSuchFile, match=r"no file headrace\.yml"):
        ask(repository.path).read_file("headrace.yml")
    (repository.path / "link").symlink_to("/etc/passwd")
    for path in ("link", "../x", "/etc/passwd", "."):
        with pytest.raises(SourceError, match=r"no path inside|no regular file"):
            ask(repository.path).read_file(path)
    with pytest.raises(SourceError, match="git is not installed"):
        resolve(str(repository.path), None, tmp_path, state=tmp_path / "s", environment={"PATH": "/nowhere"})


@pytest.mark.root
def test_a_repository_of_another_user_is_named_with_the_mend(repository: Repository, ask: Resolve) -> None:
    """Git's own refusal is three lines; ours is one."""
    repository.commit({"a": "1"})
    subprocess.run(["chown", "-R", "65534", repository.path], check=True)
    with pytest.raises(SourceError, match=r"belongs to another user.*safe\.directory"):
        ask(repository.path)


async def test_a_bundle_carries_what_is_on_disk_with_its_history(
    repository: Repository, ask: Resolve, tmp_path: Path
) -> None:
    """For a coordinator elsewhere; one that is too large is refused before it is sent."""
    repository.commit({"a": "1"})
    repository.git("tag", "v1")
    (repository.path / "a").write_text("2")
    (repository.path / "large").write_bytes(os.urandom(100_000))
    source = ask(repository.path)
    before = fingerprint(repository.path)
    size = make_bundle(source, tmp_path / "bundle")
    assert size == (tmp_path / "bundle").stat().st_size > 100_000
    folder = await built(source, tmp_path, Origin.of_bundle(tmp_path / "bundle"))
    assert (folder / "a").read_text() == "2"
    assert git(folder, "describe", "--tags").startswith("v1-1-g")
    with pytest.raises(SourceError, match="over 0 MiB: push the commit"):
        make_bundle(source, tmp_path / "second", limit=50_000)
    assert not (tmp_path / "second").exists()
    repository.git("commit", "--quiet", "-am", "clean")
    clean = ask(repository.path, "main")
    assert make_bundle(clean, tmp_path / "third") > 0
    assert fingerprint(repository.path / ".git" / "objects") != before  # the user's commit, not ours


async def test_a_shallow_clone_with_edits_can_be_built_but_not_sent(
    repository: Repository, ask: Resolve, tmp_path: Path
) -> None:
    """Its history ends in the air: locally that is fine."""
    for number in range(3):
        repository.commit({"a": str(number)})
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repository.path}", "shallow")
    (tmp_path / "shallow" / "a").write_text("edited")
    source = ask(tmp_path / "shallow")
    assert ((await built(source, tmp_path)) / "a").read_text() == "edited"
    with pytest.raises(SourceError, match="fetch --unshallow"):
        make_bundle(source, tmp_path / "bundle")


def test_snapshots_do_not_pile_up(repository: Repository, ask: Resolve, tmp_path: Path) -> None:
    """A developer runs it hundreds of times a day."""
    repository.commit({"a": "1"})
    for number in range(110):
        (repository.path / "a").write_text(f"edit {number}")
        source = ask(repository.path)
    assert source.scratch is not None
    kept = list((source.scratch / "refs" / "headrace").iterdir())
    assert 50 <= len(kept) <= 100
    assert not list(source.scratch.glob("index-*"))


async def test_projects_of_one_name_share_no_mirror(tmp_path: Path) -> None:
    """A job of teamA/web must not find the code of teamB/web among the objects that its workspace borrows."""
    runner = Git(tmp_path / "agent" / "git", {})
    unused = cast("Any", None)
    sources = Sources(runner, Mirrors(runner, tmp_path / "agent" / "mirrors"), unused, local=True, lfs_limit=1 << 20)
    commits, folders = [], []
    for team in ("teamA", "teamB"):
        repository = Repository(tmp_path / team / "web")
        commits.append(repository.commit({"of": team}))
        folders.append(tmp_path / "agent" / team)
        where = str(repository.path)
        source = pb.Source(repository=where, path=where, commit=commits[-1])
        spec = pb.JobSpec(project="web", source=source, trusted=True, checkout=pb.Checkout(enabled=True))
        await sources.make(spec, folders[-1], blobs=unused, owner=None, is_host=True)
    for folder, own, other in ((folders[0], *commits), (folders[1], *reversed(commits))):
        git(folder, "cat-file", "-e", own)
        with pytest.raises(AssertionError, match="cat-file"):
            git(folder, "cat-file", "-e", other)
