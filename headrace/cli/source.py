"""What a user asks to build: a repository and a ref, or what is on disk, resolved to one commit."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from headrace.cli.source_git import GitError, SourceError, UserGit, last_line, without_credentials
from headrace.cli.source_snapshot import Repository, keep, scratch_repository, take

__all__ = ["BUNDLE_LIMIT", "NoSuchFile", "Source", "SourceError", "make_bundle", "resolve"]

BUNDLE_LIMIT = 200 << 20
"""Bytes of a bundle that a remote coordinator takes."""

_FILE_LIMIT = 4 << 20
_SCP_LIKE = re.compile(r"(?:[^/@:\s]+@)?[^/@:\s-][^/@:\s]*:(?!//).+")
_SCHEMES = frozenset({"http", "https", "ssh", "git"})
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHORT_HASH = re.compile(r"[0-9a-f]{4,64}")


class NoSuchFile(SourceError):
    """The commit has no such file."""


@dataclass(frozen=True)
class Source:
    """One commit to build, and where it can be had."""

    repository: str
    """What makes the project: canonical path, or URL without credentials."""
    fetch_from: str
    """A path or URL that an agent on this machine can fetch from."""
    is_url: bool
    """Whether `fetch_from` is a URL, good for agents elsewhere too."""
    commit: str
    """Full hash."""
    branch: str
    """Empty: none."""
    tag: str
    """Empty: none."""
    description: str
    """For people: `abc1234 + 3 changed files`."""
    objects: UserGit
    """Git at the repository that holds the commit's objects."""
    scratch: Path | None = None
    """Our own bare repository beside the user's; None for a URL."""
    top: Path | None = None
    """Top of the user's work tree; None: there is none, or a URL was asked for."""

    def read_file(self, path: str) -> bytes:
        """A file of the commit's tree, at most 4 MiB. `path` is relative to the top. Raises `NoSuchFile`."""
        names = [name for name in path.split("/") if name not in {"", "."}]
        if path.startswith("/") or ".." in names or not names:
            raise SourceError(f"{path} is no path inside the repository: give one from its top.")
        plain = "/".join(names)
        shown = self.commit[:7] if self.description == self.commit[:7] else "what is on disk"
        try:
            entry = self.objects.raw("ls-tree", "-z", "--long", "--full-tree", self.commit, "--", plain)
            line = next((line for line in entry.split(b"\0") if line.endswith(b"\t" + os.fsencode(plain))), b"")
            if not line:
                raise NoSuchFile(f"There is no file {plain} in {shown}.")
            mode, kind, name, size = line.partition(b"\t")[0].split()
            if kind != b"blob" or mode == b"120000":
                raise NoSuchFile(f"{plain} in {shown} is no regular file.")
            if int(size) > _FILE_LIMIT:
                raise SourceError(f"{plain} has {int(size)} bytes: at most {_FILE_LIMIT} are read.")
            return self.objects.raw("cat-file", "blob", name.decode())
        except GitError as error:
            raise SourceError(f"{plain} cannot be read from {shown}: git says: {error.sentence}.") from error


def in_repository(file: str, source: Source, cwd: Path) -> str:
    """A file as it is named from the top of the repository. Only `../x` and `/x` are taken as seen from `cwd`.

    Raises `SourceError` for one that lies elsewhere.
    """
    if source.top is None or not (file.startswith("/") or ".." in file.split("/")):
        return file
    path = Path(os.path.realpath((cwd / file).parent)) / Path(file).name
    try:
        return str(path.relative_to(os.path.realpath(source.top)))
    except ValueError as error:
        raise SourceError(
            f"{file} is not inside the repository {source.top}: name a file of it, or its own repository with --repo."
        ) from error


def resolve(repo: str | None, ref: str | None, cwd: Path, *, state: Path, environment: Mapping[str, str]) -> Source:
    """Resolves a path or URL (None: the repository around `cwd`) and a ref to a `Source`.

    Without a ref, a path means what is on disk there, a URL its HEAD. `state` is a folder of ours for small bare
    repositories. Raises `SourceError`: one sentence with its mend.
    """
    if ref is not None and (not ref or ref.startswith("-") or any(c.isspace() for c in ref)):
        raise SourceError(f"{ref!r} is no ref: name a branch, a tag or a commit.")
    git = UserGit(environment)
    if repo is not None and _is_url(repo, cwd):
        return _of_url(git, repo, ref, state)
    if repo is not None and repo.startswith("file://"):
        repo = unquote(urlsplit(repo).path)
    return _of_path(git, cwd / repo if repo else cwd, ref, state)


def make_bundle(source: Source, target: Path, *, limit: int = BUNDLE_LIMIT) -> int:
    """Writes the commit with its history and tags as a git bundle, for a coordinator elsewhere.

    Returns its size in bytes. Raises `SourceError` when it would have over `limit` bytes.
    """
    if source.scratch is None:
        raise SourceError(f"{source.repository} is a URL: agents fetch from it themselves.")
    if (source.scratch / "shallow").exists():
        raise SourceError(
            f"{source.repository} is a shallow clone and cannot be sent whole: run `git fetch --unshallow` there."
        )
    own = source.objects
    try:
        keep(own, source.scratch, source.commit)
    except GitError as error:
        raise SourceError(f"{source.repository} cannot be packed: git says: {error.sentence}.") from error
    refs = (f"refs/headrace/{source.commit}", "--tags")
    command = own.command("bundle", "create", "--quiet", "-", *refs)
    size = 0
    try:
        with (
            target.open("wb") as file,
            subprocess.Popen(
                command, env=own.surroundings(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            ) as process,
        ):
            assert process.stdout is not None
            assert process.stderr is not None
            while piece := process.stdout.read(1 << 20):
                size += len(piece)
                if size > limit:
                    process.kill()
                    raise SourceError(
                        f"{source.repository} would be sent as over {limit >> 20} MiB: push the commit to a server "
                        "that the agents reach, and name it with `--repo URL --ref SHA`."
                    )
                file.write(piece)
            message = process.stderr.read()
        if process.returncode != 0:
            said = last_line(message.decode(errors="replace"))
            raise SourceError(f"{source.repository} cannot be packed: git says: {said}.")
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return size


def _is_url(repo: str, cwd: Path) -> bool:
    if "://" in repo:
        scheme = repo.partition("://")[0].lower()
        if scheme in _SCHEMES:
            return True
        if scheme == "file":
            return False
        raise SourceError(f"{without_credentials(repo)}: repositories come from a path, http, https, ssh or git.")
    if "::" in repo and not (cwd / repo).exists():
        raise SourceError(f"{repo}: repositories come from a path, http, https, ssh or git.")
    return bool(_SCP_LIKE.fullmatch(repo)) and not (cwd / repo).exists()


# --- a path ---------------------------------------------------------------------------------------------------


def _of_path(git: UserGit, path: Path, ref: str | None, state: Path) -> Source:
    repository = _repository_at(git, path)
    at = git.at("-C", str(repository.top or path))
    try:
        scratch = scratch_repository(at, repository, state)
        head = _commit(at, "HEAD")
        if ref is not None:
            return _of_ref(at, repository, ref, scratch)
        branch = _or_empty(at, "symbolic-ref", "--quiet", "--short", "HEAD")
        if repository.top is None:
            if not head:
                raise SourceError(f"{repository.identity} has no commit yet.")
            return _source(at, repository, scratch, head, branch=branch, description=head[:7])
    except GitError as error:
        raise SourceError(f"{path} cannot be read: git says: {error.sentence}.") from error
    snapshot = take(at, repository, scratch, head)
    if snapshot.commit == head:
        return _source(at, repository, scratch, head, branch=branch, description=head[:7])
    files = "1 changed file" if snapshot.changed == 1 else f"{snapshot.changed} changed files"
    description = f"{head[:7]} + {files}" if head else f"no commit yet + {files}"
    return _source(at, repository, scratch, snapshot.commit, branch=branch, description=description, own=True)


def _repository_at(git: UserGit, path: Path) -> Repository:
    if path.name == ".git" and (path.parent / ".git").is_dir():
        path = path.parent  # seen from within it, its work tree is not there
    if not path.is_dir():
        raise SourceError(f"There is no folder {path}: name a repository with --repo.")
    at = git.at("-C", str(path))
    try:
        git_dir, common, bare = at.text(
            "rev-parse", "--path-format=absolute", "--git-dir", "--git-common-dir", "--is-bare-repository"
        ).split("\n")
        top = None if bare == "true" else Path(at.text("rev-parse", "--path-format=absolute", "--show-toplevel"))
    except GitError as error:
        if "not a git repository" in error.sentence:
            raise SourceError(
                f"There is no git repository at {path}: run `git init` there, or name one with --repo."
            ) from error
        if "dubious ownership" in error.sentence:
            raise SourceError(
                f"The repository at {path} belongs to another user: if you trust it, run "
                f"`git config --global --add safe.directory {path}`."
            ) from error
        raise SourceError(f"{path} cannot be read: git says: {error.sentence}.") from error
    return Repository(Path(os.path.realpath(git_dir)), Path(os.path.realpath(common)), top)


def _of_ref(at: UserGit, repository: Repository, ref: str, scratch: Path) -> Source:
    commit = _commit(at, ref)
    if not commit:
        names = at.text("for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags", "refs/remotes")
        raise _no_such_ref(ref, str(repository.identity), names.split("\n"))
    full = _or_empty(at, "rev-parse", "--symbolic-full-name", "--verify", "--end-of-options", ref)
    branch = full.removeprefix("refs/heads/") if full.startswith("refs/heads/") else ""
    if full.startswith("refs/remotes/"):
        branch = full.removeprefix("refs/remotes/").partition("/")[2]
    tag = full.removeprefix("refs/tags/") if full.startswith("refs/tags/") else ""
    return _source(at, repository, scratch, commit, branch=branch, tag=tag, description=commit[:7])


def _source(
    at: UserGit,
    repository: Repository,
    scratch: Path,
    commit: str,
    *,
    branch: str,
    description: str,
    tag: str = "",
    own: bool = False,
) -> Source:
    return Source(
        repository=str(repository.identity),
        fetch_from=str(scratch if own else repository.common_dir),
        is_url=False,
        commit=commit,
        branch=branch,
        tag=tag,
        description=description,
        objects=at.at("-C", "/", f"--git-dir={scratch}"),
        scratch=scratch,
        top=repository.top,
    )


def _commit(at: UserGit, ref: str) -> str:
    return _or_empty(at, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")


def _or_empty(at: UserGit, *arguments: str) -> str:
    try:
        return at.text(*arguments)
    except GitError:
        return ""


def _no_such_ref(ref: str, where: str, names: list[str]) -> SourceError:
    near = difflib.get_close_matches(ref, [name for name in names if name], n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return SourceError(f"There is no branch, tag or commit {ref} in {where}.{hint}")


# --- a URL ----------------------------------------------------------------------------------------------------


def _of_url(git: UserGit, url: str, ref: str | None, state: Path) -> Source:
    shown = without_credentials(url)
    speaking = git.at("-C", "/", GIT_ALLOW_PROTOCOL="http:https:ssh:git")
    try:
        listed = speaking.text("ls-remote", "--symref", "--end-of-options", url, "HEAD", "refs/heads/*", "refs/tags/*")
    except GitError as error:
        raise SourceError(f"{shown} cannot be reached: git says: {error.sentence}.") from error
    commit, branch, tag = _pick(_advertised(listed), ref, shown)
    scratch = state / hashlib.sha256(shown.encode()).hexdigest()[:24]
    own = speaking.at(f"--git-dir={scratch}")
    try:
        if not (scratch / "HEAD").exists():
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            form = "sha256" if len(commit) == 64 else "sha1"
            speaking.raw("init", "--quiet", "--bare", "--template=", f"--object-format={form}", str(scratch))
        found = _commit(own, commit) or _fetched(own, url, commit)
    except GitError as error:
        raise SourceError(f"{shown} cannot be fetched: git says: {error.sentence}.") from error
    if not found:
        raise SourceError(f"There is no commit {commit[:12]} in {shown}: has it been pushed?")
    return Source(
        repository=shown.rstrip("/"),
        fetch_from=url,
        is_url=True,
        commit=found,
        branch=branch,
        tag=tag,
        description=found[:7],
        objects=own,
    )


def _advertised(listed: str) -> dict[str, str]:
    """Ref names and what they point to; tags peeled. `HEAD` may also be there as `ref: refs/heads/main`."""
    refs: dict[str, str] = {}
    for line in listed.split("\n"):
        value, _, name = line.partition("\t")
        if value.startswith("ref: "):
            refs["HEAD's name"] = value.removeprefix("ref: ")
        elif name:
            refs[name.removesuffix("^{}")] = value  # the peeled line comes after the tag's own
    return refs


def _pick(refs: dict[str, str], ref: str | None, shown: str) -> tuple[str, str, str]:
    """Commit (or tag object), branch and tag that the ref means."""
    if ref is None or ref == "HEAD":
        if "HEAD" not in refs:
            raise SourceError(f"{shown} has no HEAD: name a branch, tag or commit with --ref.")
        return refs["HEAD"], refs.get("HEAD's name", "").removeprefix("refs/heads/"), ""
    for prefix in ("refs/heads/", "refs/tags/"):
        short = ref.removeprefix(prefix)
        if commit := refs.get(prefix + short):
            return commit, short if prefix == "refs/heads/" else "", short if prefix == "refs/tags/" else ""
    if _HASH.fullmatch(ref):
        return ref, "", ""
    if _SHORT_HASH.fullmatch(ref):
        whole = {value for value in refs.values() if value.startswith(ref)}
        if len(whole) == 1:
            return whole.pop(), "", ""
        raise SourceError(f"{ref} names no tip of a branch or tag in {shown}: give the commit's full hash.")
    names = [name.removeprefix("refs/heads/").removeprefix("refs/tags/") for name in refs]
    raise _no_such_ref(ref, shown, names)


def _fetched(own: UserGit, url: str, commit: str) -> str:
    """Fetches one commit, as little of it as the server allows; empty if the server has no such commit."""
    one = f"+{commit}:refs/headrace/{commit}"
    everything = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
    command = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance")
    for options, refspecs in ((("--depth=1",), (one,)), ((), (one,)), ((), everything)):
        with contextlib.suppress(GitError):
            own.raw(*command, *options, "--end-of-options", url, *refspecs)
            if found := _commit(own, commit):
                return found
    return ""
