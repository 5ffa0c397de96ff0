"""Submodules with real repositories and real git in the workspace: what a job finds, and where it comes from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agent.problems import JobProblem
from agent.sandbox.protocol import Bind
from agent.workspace.checkout import Workspace
from agent.workspace.gitmodules import resolved
from agent.workspace.mirror import Origin
from agent.workspace.upstream import Upstream, upstream_of_path
from headrace.pipeline.plan import Checkout
from tests.harness.git_repo import Repository, fingerprint, git, http_backend
from tests.integration.workspace.bench import Agent

WITH = Checkout(submodules=True)


def repository_at(folder: Path, name: str, commits: int = 1) -> Repository:
    made = Repository(folder / name)
    for number in range(commits):
        made.commit({"a": f"{name} {number}"})
    return made


def add(parent: Repository, child: Repository, path: str, *, url: str | None = None) -> str:
    """`git submodule add`, then the URL that the file shall have; returns the commit."""
    git(parent.path, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(child.path), path)
    if url is not None:
        parent.git("config", "--file", ".gitmodules", f"submodule.{path}.url", url)
    return parent.commit({})


async def check_out_here(agent: Agent, repository: Repository, commit: str, checkout: Checkout = WITH) -> Workspace:
    """As for a local run of a path."""
    known = await upstream_of_path(agent.git, repository.path)
    return await agent.check_out(Origin.of_path(repository.path), commit, checkout, upstream=known)


async def check_out_url(agent: Agent, url: str, commit: str, checkout: Checkout = WITH) -> Workspace:
    return await agent.check_out(Origin.of_url(url), commit, checkout, upstream=Upstream(url))


async def test_submodules_are_at_exactly_the_recorded_commits_however_nested(
    agent: Agent, repository: Repository
) -> None:
    """Over http, with relative URLs: the newest commits of the libraries are not what the tree records."""
    served = repository.path.parent
    deep, lib = repository_at(served, "deep"), repository_at(served, "lib")
    recorded_deep = deep.git("rev-parse", "HEAD")
    recorded_lib = add(lib, deep, "vendor/deep", url="../deep")
    commit = add(repository, lib, "third party/lib", url="../lib/.git")
    deep.commit({"a": "newer"})
    lib.commit({"a": "newer"})
    with http_backend(served) as (base, _):
        # Seen from `…/lib/.git`, `../deep` would lie in lib: what serves repositories has them side by side.
        (served / "lib" / "deep").symlink_to(served / "deep" / ".git")
        made = await check_out_url(agent, f"{base}/shop", commit)
        again = await check_out_url(agent, f"{base}/shop", commit)
    inner = made.folder / "third party/lib"
    assert (inner / "a").read_text() == "lib 0"
    assert (inner / "vendor/deep/a").read_text() == "deep 0"
    assert git(made.folder, "status", "--porcelain") == ""
    assert git(made.folder, "submodule", "status", "--recursive").splitlines() == [
        f" {recorded_lib} third party/lib ({recorded_lib[:7]})",
        f" {recorded_deep} third party/lib/vendor/deep ({recorded_deep[:7]})",
    ]
    assert git(inner, "log", "-1", "--format=%H") == recorded_lib
    assert git(inner, "remote", "get-url", "origin") == f"{base}/lib/.git"
    assert (made.fetched.objects, again.fetched.objects) == (4, 0)
    assert made.notes == (
        f"submodule 'third party/lib': commit {recorded_lib}: 7 objects fetched",
        f"submodule 'third party/lib/vendor/deep': commit {recorded_deep}: 3 objects fetched",
    )


async def test_each_repository_has_one_mirror_and_one_read_only_bind(agent: Agent, repository: Repository) -> None:
    """Two submodules of one repository borrow from one mirror; no inode is shared with it."""
    lib = repository_at(repository.path.parent, "lib")
    add(repository, lib, "one", url="../lib/.git")
    commit = add(repository, lib, "two", url="../lib/.git")
    known = Upstream(str(repository.path), local=True)
    made = await agent.check_out(Origin.of_path(repository.path), commit, WITH, inside=True, upstream=known)
    at, objects = made.binds[1].target, made.binds[1].source
    assert made.binds == (
        Bind(agent.mirror.objects, "/hr-mirror/objects"),
        Bind(objects, "/hr-mirror/modules/0/objects"),
    )
    assert objects != agent.mirror.objects
    for path in ("one", "two"):
        assert (made.folder / path / ".git/objects/info/alternates").read_text() == f"{at}\n"
    assert {file.lstat().st_nlink for file in made.folder.rglob("*") if file.is_file()} == {1}


async def test_depth_holds_for_submodules_too(agent: Agent, repository: Repository) -> None:
    """One figure for all: the history of a library is as long as that of what uses it."""
    lib = repository_at(repository.path.parent, "lib", commits=5)
    commit = add(repository, lib, "lib", url="../lib/.git")
    for depth, expected in ((1, "1"), (3, "3"), (0, "5")):
        made = await check_out_here(agent, repository, commit, Checkout(depth=depth, submodules=True))
        assert git(made.folder / "lib", "rev-list", "--count", "HEAD") == expected


async def test_without_submodules_in_the_commit_nothing_is_missed(agent: Agent, repository: Repository) -> None:
    """`submodules: true` may stand in the defaults of many repositories."""
    made = await check_out_here(agent, repository, repository.commit({"a": "1", ".gitmodules": ""}))
    assert (made.folder / "a").exists()
    assert made.notes == ()
    stale = '[submodule "gone"]\n\tpath = gone\n\turl = https://127.0.0.1:1/gone\n'
    made = await check_out_here(agent, repository, repository.commit({".gitmodules": stale}))
    assert made.notes == (".gitmodules has an entry for gone, where the commit has nothing",)


async def test_left_out_a_submodule_is_an_empty_folder(agent: Agent, repository: Repository) -> None:
    """As after `git clone`."""
    lib = repository_at(repository.path.parent, "lib")
    made = await check_out_here(agent, repository, add(repository, lib, "lib"), Checkout())
    assert list((made.folder / "lib").iterdir()) == []


async def test_a_local_run_takes_submodules_from_the_users_own_clone(agent: Agent, repository: Repository) -> None:
    """Offline, and with commits that were never pushed; the clone stays as it was."""
    served = repository.path.parent
    deep, lib = repository_at(served, "deep"), repository_at(served, "lib")
    add(lib, deep, "deep", url="https://127.0.0.1:1/deep")
    commit = add(repository, lib, "lib", url="https://127.0.0.1:1/lib")
    git(repository.path / "lib", "config", "submodule.deep.url", str(deep.path))
    git(repository.path / "lib", "-c", "protocol.file.allow=always", "submodule", "--quiet", "update", "--init")
    for gone in (deep, lib):
        shutil.rmtree(gone.path)
    before = fingerprint(repository.path)
    made = await check_out_here(agent, repository, commit)
    assert fingerprint(repository.path) == before
    assert (made.folder / "lib/deep/a").read_text() == "deep 0"
    (repository.path / "lib" / "a").write_text("never pushed")
    git(repository.path / "lib", "commit", "-q", "-am", "unpushed")
    unpushed = repository.commit({})
    made = await check_out_here(agent, repository, unpushed)
    assert (made.folder / "lib/a").read_text() == "never pushed"
    shutil.rmtree(agent.mirrors.of("shop", trusted=True).objects.parents[2])  # all mirrors
    repository.git("submodule", "--quiet", "deinit", "--force", "lib")
    made = await check_out_here(agent, repository, unpushed)
    assert (made.folder / "lib/a").read_text() == "never pushed"


async def test_a_clone_that_lacks_the_commit_is_no_obstacle(agent: Agent, repository: Repository) -> None:
    """The user has pulled, and not updated the submodules yet: they come from where git would fetch them."""
    lib = repository_at(repository.path.parent, "lib")
    add(repository, lib, "lib", url="../lib/.git")
    newer = lib.commit({"a": "newer"})
    git(repository.path, "update-index", "--cacheinfo", f"160000,{newer},lib")
    git(repository.path, "commit", "-q", "-m", "newer")
    made = await check_out_here(agent, repository, repository.git("rev-parse", "HEAD"))
    assert (made.folder / "lib/a").read_text() == "newer"


async def test_a_repository_that_lies_in_the_tree_with_its_git_folder_is_found(
    agent: Agent, repository: Repository
) -> None:
    """`git submodule add` of a clone that was there before leaves its `.git` where it is."""
    lib = repository_at(repository.path.parent, "lib")
    git(repository.path, "clone", "-q", str(lib.path), "lib")
    repository.git("submodule", "--quiet", "add", "https://127.0.0.1:1/lib", "lib")
    made = await check_out_here(agent, repository, repository.commit({}))
    assert (made.folder / "lib/a").read_text() == "lib 0"


async def test_of_a_bundle_absolute_urls_are_fetched_and_relative_ones_have_a_sentence(
    agent: Agent, repository: Repository, tmp_path: Path
) -> None:
    """A bundle does not say where it comes from; a project that is known by a URL does."""
    lib = repository_at(repository.path.parent, "lib")
    with http_backend(repository.path.parent) as (base, _):
        absolute = add(repository, lib, "lib", url=f"{base}/lib/.git")
        repository.git("config", "--file", ".gitmodules", "submodule.lib.url", "../lib/.git")
        relative = repository.commit({})
        repository.git("bundle", "create", "--quiet", str(tmp_path / "b"), "main")
        bundle = Origin.of_bundle(tmp_path / "b")
        made = await agent.check_out(bundle, absolute, WITH)
        assert (made.folder / "lib/a").read_text() == "lib 0"
        with pytest.raises(JobProblem, match=r"Submodule lib: its URL \.\./lib/\.git is relative, .* a bundle"):
            await agent.check_out(bundle, relative, WITH)
        made = await agent.check_out(bundle, relative, WITH, upstream=Upstream(f"{base}/shop"))
        assert (made.folder / "lib/a").read_text() == "lib 0"


@pytest.mark.parametrize(
    "base",
    [
        "https://example.com/org/shop.git",
        "https://example.com/org/shop/",
        "https://example.com:8443/shop",
        "ssh://git@example.com/org/shop",
        "git@example.com:org/shop.git",
        "git@example.com:shop.git",
        "git@example.com:/srv/shop.git",
        "file:///srv/git/shop",
        "/srv/git/shop.git",
    ],
)
@pytest.mark.parametrize("url", ["../lib", "./lib", "../lib.git", "../lib/", "./../x/lib", "https://else.example/x"])
def test_relative_urls_are_resolved_as_git_does(base: str, url: str, repository: Repository) -> None:
    """Git itself is asked what it would fetch from."""
    commit = repository.commit({"a": "1", ".gitmodules": f'[submodule "lib"]\n\tpath = lib\n\turl = {url}\n'})
    git(repository.path, "update-index", "--add", "--cacheinfo", f"160000,{commit},lib")
    repository.git("config", "remote.origin.url", base)
    repository.git("submodule", "init")
    assert resolved(url, base) == repository.git("config", "submodule.lib.url")
