"""Submodules of commits that mean harm: each attempt ends with one sentence, and nothing was run, read or written."""

from __future__ import annotations

import contextlib
import re
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from agent.problems import Cause, JobProblem
from agent.source import Sources
from agent.workspace import submodules
from agent.workspace.gitmodules import DEEPEST, FILE_LIMIT, MOST
from agent.workspace.mirror import Origin
from agent.workspace.upstream import Upstream, upstream_of_path
from headrace.pipeline.plan import Checkout
from headrace.v1 import common_pb2 as pb
from tests.harness.git_repo import ENVIRONMENT, Repository, git, git_daemon, http_backend
from tests.integration.workspace.bench import Agent
from tests.integration.workspace.test_checkout_faults import _blob, _tree

WITH = Checkout(submodules=True)
NOWHERE = "https://127.0.0.1:1/lib"


@pytest.fixture
def lib(repository: Repository) -> Repository:
    made = Repository(repository.path.parent / "lib")
    made.commit({"a": "lib"})
    return made


def module(path: str, url: str, name: str = "lib", more: str = "") -> str:
    return f'[submodule "{name}"]\n\tpath = "{path}"\n\turl = "{url}"\n{more}'


def commit_with(repository: Repository, modules: str, **links: str) -> str:
    """A commit with this `.gitmodules` and these gitlinks."""
    repository.commit({".gitmodules": modules})
    for path, commit in links.items():
        git(repository.path, "update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
    git(repository.path, "commit", "--quiet", "--allow-empty", "-m", "links")
    return repository.git("rev-parse", "HEAD")


async def refused(agent: Agent, repository: Repository, commit: str, known: Upstream | None = None) -> str:
    """The one sentence; the workspace is gone, and nothing was made beside it."""
    known = known or Upstream(str(repository.path), local=True)
    before = {path.name for path in agent.state.iterdir()}
    with pytest.raises(JobProblem) as caught:
        await agent.check_out(Origin.of_path(repository.path), commit, WITH, upstream=known)
    assert caught.value.cause is Cause.CHECKOUT_FAILED
    assert {path.name for path in agent.state.iterdir()} - before <= {"git", "mirrors"}
    said = caught.value.sentence
    assert said.endswith((".", "?"))
    assert min(said) >= " "
    return said


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (module("../lib", NOWHERE), r"the path \.\./lib, which has an empty, `\.` or `\.\.` part"),
        (module("/tmp/lib", NOWHERE), "the path /tmp/lib, which is absolute"),
        (module("-lib", NOWHERE), "the path -lib, which looks like an option"),
        (module("lib\\b", NOWHERE), r"the path 'lib\\x08', which has a control character"),
        (module("lib", NOWHERE, "../../hooks"), r"the name \.\./\.\./hooks, which has an empty"),
        (module("lib", NOWHERE, "/etc"), "the name /etc, which is absolute"),
        (module(".GIT/modules/x", NOWHERE), r"the path \.GIT/modules/x, which leads into git's own folder"),
        (module("lib", NOWHERE) + module("lib", NOWHERE, "two"), "two entries at the path lib"),
        (module("lib", NOWHERE, more="\tupdate = !touch ran\n"), "a command as `update` of lib: none is run"),
        (module("lib", "ext::sh -c 'touch ran'"), r"Submodule lib: its URL .*ext::.* is none that is spoken here"),
        (module("lib", "ssh://-oProxyCommand=ran/x"), "its URL ssh://-oProxyCommand=ran/x is none"),
        (module("lib", "git@-oProxyCommand=ran:x"), "its URL git@-oProxyCommand=ran:x is none"),
        (module("lib", "https://127.0.0.1/\\nx"), "has a control character"),
        (module("lib", "gopher://127.0.0.1/x"), "is no repository URL: http, https, ssh, git and file"),
        (module("lib", "lib"), "is no repository URL"),
        (module("lib", ""), "it has no `url` in .gitmodules"),
        (
            module("lib", NOWHERE),
            f"Submodule lib: Commit .* cannot be fetched from {NOWHERE}: git says: .*connect",
        ),
        ("[submodule", "submodules of commit .* cannot be read: git says: bad config line "),
        ("#" * (FILE_LIMIT + 1), f"has {FILE_LIMIT + 1:,} bytes: at most {FILE_LIMIT:,} are read"),
        ("", "lib is a submodule in the tree, but .gitmodules has no entry for it"),
    ],
)
async def test_what_gitmodules_says_is_refused_with_a_sentence(
    modules: str, expected: str, agent: Agent, repository: Repository, lib: Repository
) -> None:
    """Names and paths that lead elsewhere, commands, URLs that are options, helpers or nowhere."""
    said = await refused(agent, repository, commit_with(repository, modules, lib=lib.git("rev-parse", "HEAD")))
    assert re.search(expected, said), said
    assert not list(agent.state.parent.rglob("ran*"))


async def test_a_path_that_is_no_gitlink_is_refused(agent: Agent, repository: Repository, lib: Repository) -> None:
    """A file, a folder, and a way through a link of the tree: nothing is written over or behind it."""
    (repository.path / "link").symlink_to("/tmp")
    repository.commit({"file": "1", "folder/file": "1"})
    for path in ("file", "folder", "link", "link/lib", "file/lib"):
        commit = commit_with(repository, module(path, "../lib/.git"))
        said = await refused(agent, repository, commit)
        assert said == f".gitmodules has the path {path}, which is no submodule in the tree: take it out."


@pytest.mark.parametrize("name", [".git", ".GIT", "git~1", ".git\u200c", "..", "."])
async def test_a_gitlink_under_a_name_of_gits_own_is_refused(
    name: str, agent: Agent, repository: Repository, lib: Repository
) -> None:
    """The tree can hold what `git add` would never take."""
    here, link = lib.git("rev-parse", "HEAD"), "../lib/.git"
    modules = _blob(repository, module(name, link).encode())
    tree = _tree(repository, [("100644", "blob", modules, ".gitmodules"), ("160000", "commit", here, name)])
    said = await refused(agent, repository, repository.git("commit-tree", "-m", "evil", tree))
    assert "cannot be checked out" in said or "leads into" in said or "part" in said, said


async def test_a_link_beside_a_gitlink_of_the_same_name_leads_nowhere(
    agent: Agent, repository: Repository, lib: Repository, tmp_path: Path
) -> None:
    """A tree with one name twice: whichever git takes, nothing is written where the link points."""
    outside = tmp_path / "outside"
    outside.mkdir()
    link = _blob(repository, str(outside).encode())
    inner = _tree(repository, [("160000", "commit", lib.git("rev-parse", "HEAD"), "lib")])
    modules = _blob(repository, module("a/lib", "../lib/.git").encode())
    for order in (1, -1):
        twice = [("120000", "blob", link, "a"), ("40000", "tree", inner, "a")][::order]
        tree = _tree(repository, [("100644", "blob", modules, ".gitmodules"), *twice])
        commit = repository.git("commit-tree", "-m", "evil", tree)
        with contextlib.suppress(JobProblem):  # git may refuse it
            await agent.check_out(
                Origin.of_path(repository.path), commit, WITH, upstream=Upstream(str(repository.path), local=True)
            )
        assert list(outside.iterdir()) == []


async def test_gitmodules_is_no_link(agent: Agent, repository: Repository) -> None:
    """What it points to would be read by the agent, and be shown in a message."""
    tree = _tree(repository, [("120000", "blob", _blob(repository, b"/etc/passwd"), ".gitmodules")])
    commit = repository.git("commit-tree", "-m", "evil", tree)
    said = await refused(agent, repository, commit)
    assert said == f"Commit {commit[:12]} cannot be checked out: git says: invalid path '.gitmodules'."


@pytest.mark.parametrize("form", ["file://{}", "{}", "{}/.git"])
async def test_a_repository_from_elsewhere_names_none_on_this_machine(
    form: str, agent: Agent, repository: Repository, lib: Repository
) -> None:
    """The agent may be root, and reads what whoever wrote `.gitmodules` may not: other projects, private clones."""
    commit = commit_with(repository, module("lib", form.format(lib.path)), lib=lib.git("rev-parse", "HEAD"))
    with git_daemon(repository.path.parent) as base:
        said = await refused(agent, repository, commit, Upstream(f"{base}/shop"))
        assert "is a path on the agent's own machine: write that of a server" in said
    made = await agent.check_out(
        Origin.of_path(repository.path), commit, WITH, upstream=await upstream_of_path(agent.git, repository.path)
    )
    assert (made.folder / "lib/a").read_text() == "lib"


@pytest.mark.parametrize("way", ["path", "url"])
async def test_a_local_agent_gives_no_private_repository_to_foreign_code(
    way: str, agent: Agent, repository: Repository, lib: Repository
) -> None:
    """`headrace run --repo https://…` builds the code of others beside everything that the user has."""
    commit = commit_with(repository, module("lib", str(lib.path)), lib=lib.git("rev-parse", "HEAD"))
    unused = cast("Any", None)
    sources = Sources(agent.git, agent.mirrors, unused, local=True, lfs_limit=0)
    with git_daemon(repository.path.parent) as base:
        source = pb.Source(repository=str(repository.path), commit=commit)
        if way == "path":
            source.path = str(repository.path)
        else:
            source.url = f"{base}/shop"
        spec = pb.JobSpec(source=source, trusted=True, checkout=pb.Checkout(enabled=True, submodules=True))
        making = sources.make(spec, agent.state / "tree", blobs=unused, owner=None, is_host=True)
        if way == "path":
            assert ((await making).folder / "lib/a").read_text() == "lib"
        else:
            with pytest.raises(JobProblem, match="is a path on the agent's own machine: write that of a server"):
                await making


async def test_nor_does_a_submodule_from_elsewhere_in_a_repository_of_this_machine(
    agent: Agent, repository: Repository, lib: Repository
) -> None:
    """A user builds a clone of the own; the library of somebody else in it names the user's other repositories."""
    middle = Repository(repository.path.parent / "middle")
    inner = commit_with(middle, module("lib", str(lib.path)), lib=lib.git("rev-parse", "HEAD"))
    with http_backend(repository.path.parent) as (base, _):
        outer = commit_with(repository, module("middle", f"{base}/middle/.git", "middle"), middle=inner)
        said = await refused(agent, repository, outer, await upstream_of_path(agent.git, repository.path))
    assert said.startswith("Submodule middle/lib: its URL ")
    assert "the agent's own machine" in said


async def test_an_untrusted_run_does_not_use_the_agents_key(
    agent: Agent, repository: Repository, lib: Repository
) -> None:
    """A pull request from a fork may name any repository that the agent's key opens."""
    commit = commit_with(repository, module("lib", "git@127.0.0.1:org/private"), lib=lib.git("rev-parse", "HEAD"))
    with pytest.raises(JobProblem, match="takes the agent's own key, and this run is not trusted"):
        await agent.check_out(Origin.of_path(repository.path), commit, WITH, trusted=False)


async def test_a_commit_that_the_remote_does_not_serve_is_named(
    agent: Agent, repository: Repository, lib: Repository
) -> None:
    """Somebody forgot to push the library."""
    commit = commit_with(repository, module("lib", "../lib/.git"), lib="1234567890" * 4)
    said = await refused(agent, repository, commit)
    assert said == f"Submodule lib: Commit 123456789012 is not in {lib.path}/.git: has it been pushed?"


async def test_submodules_that_nest_too_deep_are_refused(agent: Agent, repository: Repository) -> None:
    """No commit can hold itself, but a repository can hold its own older commits, one in the other."""
    commit = repository.commit({"a": "1"})
    for _ in range(DEEPEST + 1):
        commit = commit_with(repository, module("again", str(repository.path)), again=commit)
    said = await refused(agent, repository, commit)
    assert said == (
        f"Submodule {'/'.join(['again'] * DEEPEST)}: it has submodules itself, and more than {DEEPEST} levels are not "
        "followed."
    )


async def test_too_many_submodules_are_refused_before_they_are_fetched(
    agent: Agent, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two in each of two in each of two: they double with every level."""
    links = "\n".join(f"160000 commit {'1' * 40}\tm{n}" for n in range(MOST + 1))
    tree = _many(repository, links)
    said = await refused(agent, repository, repository.git("commit-tree", "-m", "many", tree))
    assert said == f"This commit has {MOST + 1} submodules: at most {MOST} are checked out."
    monkeypatch.setattr(submodules, "MOST", 5)
    commit = repository.commit({"a": "1"})
    both = "".join(module(path, str(repository.path), path) for path in ("x", "y"))
    for _ in range(3):
        commit = commit_with(repository, both, x=commit, y=commit)
    said = await refused(agent, repository, commit)
    assert said == "This commit has more than 5 submodules, nested ones counted: that is refused."


def _many(repository: Repository, links: str) -> str:
    done = subprocess.run(
        ["git", "-C", repository.path, "mktree", "--missing"],
        input=links.encode(),
        capture_output=True,
        check=True,
        env=ENVIRONMENT,
    )
    return done.stdout.decode().strip()


async def test_nothing_that_a_submodule_names_is_executed(
    agent: Agent, repository: Repository, lib: Repository, tmp_path: Path
) -> None:
    """Its configuration, hooks and attributes are a stranger's as the top's are."""
    program = tmp_path / "evil.sh"
    program.write_text(f"#!/bin/sh\necho $0 >>{tmp_path}/ran\ncat\n")
    program.chmod(0o755)
    (lib.path / ".git" / "hooks").mkdir(exist_ok=True)
    here = lib.commit({".gitattributes": "* filter=evil", "b": "1"})
    (lib.path / ".git" / "hooks" / "post-checkout").symlink_to(program)
    for name in ("core.fsmonitor", "filter.evil.smudge", "uploadpack.packObjectsHook", "core.alternateRefsCommand"):
        lib.git("config", name, str(program))
    more = f"\tfetchRecurseSubmodules = true\n[core]\n\tsshCommand = {program}\n[include]\n\tpath = /etc/passwd\n"
    commit = commit_with(repository, module("lib", "../lib/.git", more=more), lib=here)
    (tmp_path / "ran").unlink(missing_ok=True)
    known = Upstream(str(repository.path), local=True)
    made = await agent.check_out(Origin.of_path(repository.path), commit, WITH, upstream=known)
    assert (made.folder / "lib/b").read_text() == "1"
    assert not (tmp_path / "ran").exists()
