"""Submodules and large files by `headrace run`, as a user has them: offline, half of it never pushed."""

from __future__ import annotations

import pytest

from tests.harness.git_repo import Repository, fingerprint, git

pytestmark = pytest.mark.timeout(300)

LOOK = """
name: look
stages:
  - name: a
    jobs:
      look:
        checkout: {submodules: true, lfs: true}
        steps: [{run: "cat lib/a big.bin; git submodule status"}]
"""


def _untouched(repository: Repository) -> dict[str, str]:
    """All but git LFS's own store: its filter, which is the user's, works there whenever git looks at a large file."""
    return {path: facts for path, facts in fingerprint(repository.path).items() if not path.startswith(".git/lfs")}


def test_a_local_run_has_the_submodules_and_large_files_of_the_users_clone(scene):
    """Commits and large files that nobody else has; what is not committed in a submodule is no part of it."""
    lib = Repository(scene.folder / "lib")
    lib.commit({"a": "pushed\n"})
    repository = scene.repository(LOOK, {".gitattributes": "*.bin filter=lfs\n"})
    repository.git("config", "filter.lfs.clean", "git-lfs clean -- %f")
    git(repository.path, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(lib.path), "lib")
    repository.git("config", "--file", ".gitmodules", "submodule.lib.url", "https://127.0.0.1:1/lib")
    repository.commit({"big.bin": "a large file\n"})
    lib.path.rename(scene.folder / "gone")
    (repository.path / "lib" / "a").write_text("never pushed\n")
    git(repository.path / "lib", "commit", "-q", "-am", "never pushed")
    recorded = git(repository.path / "lib", "rev-parse", "HEAD")
    (repository.path / "lib" / "a").write_text("never committed\n")
    before = _untouched(repository)
    done = scene("run")
    assert done.code == 0, done.out + done.err
    assert _untouched(repository) == before
    assert f"look | never pushed\nlook | a large file\nlook |  {recorded} lib (" in done.out
    log = scene("logs", "1", "look").out
    assert f"submodule lib: commit {recorded}: " in log
    assert "large files: 1, 13 bytes" in log
