"""Git as the agent runs it: no shell, no prompt, no hook, and one configuration file of ours.

The repositories that are read belong to others, so nothing of the machine's or the user's configuration is read,
and what a source repository configures for itself can start no program: the file written here wins where git asks
protected configuration only, and the rest is refused by the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.problems import Cause, JobProblem

OUTPUT_LIMIT = 64 << 20
"""Bytes of standard output that one command may print: a repository with a million tags stays below it."""

_MESSAGE_LIMIT = 64 << 10
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PRLIMIT = "/usr/bin/prlimit"
_MISSING = 127
_NOT_INSTALLED = "git is not installed on this agent"
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@'\"]+@")
_PASSED_ON = re.compile(r"(?i:(?:https?|ftp|all|no)_proxy)|GIT_SSL_CAINFO|SSL_CERT_FILE")

# What a mirror or a fetch must never do, whatever the repositories at either end say. `uploadpack.allowAny…`
# lets a local source hand out a commit that no ref of it names (a worktree's detached head, say).
_SETTINGS = """\
[core]
	hooksPath = /dev/null
	fsmonitor = false
	untrackedCache = false
	askPass = true
	pager = cat
	editor = true
	attributesFile = /dev/null
	excludesFile = /dev/null
	protectHFS = true
	protectNTFS = true
	autocrlf = false
[credential]
	helper =
[protocol]
	allow = user
	version = 2
[protocol "ext"]
	allow = never
[uploadpack]
	allowAnySHA1InWant = true
[fetch]
	unpackLimit = 1
	recurseSubmodules = false
	writeCommitGraph = false
[transfer]
	bundleURI = false
	credentialsInUrl = allow
[submodule]
	recurse = false
[http]
	lowSpeedLimit = 1000
	lowSpeedTime = 60
	followRedirects = initial
[gc]
	auto = 0
	autoDetach = false
[maintenance]
	auto = false
[init]
	templateDir =
	defaultBranch = main
[advice]
	detachedHead = false
[safe]
	bareRepository = all
"""


class GitFailed(Exception):
    """A git command failed. `sentence` is git's own last line, `message` all it said; without credentials."""

    def __init__(self, command: str, code: int, sentence: str, message: str = "") -> None:
        super().__init__(f"git {command}: {sentence} (exit code {code})")
        self.command = command
        self.code = code
        self.sentence = sentence
        self.message = message


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command runs: a git directory, and a work tree where there is one."""

    git_dir: Path
    work_tree: Path | None = None

    def options(self) -> list[str]:
        """The options that name it, for the front of a command line."""
        tree = [] if self.work_tree is None else [f"--work-tree={self.work_tree}"]
        return [f"--git-dir={self.git_dir}", *tree]


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environment` that git needs behind a proxy or with a private CA, and no others."""
    return {name: value for name, value in environment.items() if _PASSED_ON.fullmatch(name)}


def without_credentials(text: str) -> str:
    """The text with `user:password@` cut out of every URL in it."""
    return _CREDENTIALS.sub("", text)


def last_line(message: str) -> str:
    """What git said at the end: its last `fatal:` or `error:` line, else its last line, without credentials.

    Where that line only says that the remote could not be read, the line before it says why and comes first.
    """
    lines = [line.strip() for line in re.split(r"[\r\n]+", message) if line.strip()]
    if not lines:
        return "it said nothing"
    marked = [i for i, line in enumerate(lines) if line.startswith("fatal:")]
    marked = marked or [i for i, line in enumerate(lines) if line.startswith(("error:", "remote:"))]
    chosen = lines[marked[-1]] if marked else lines[-1]
    if "Could not read from remote repository" in chosen and marked[-1]:
        chosen = lines[marked[-2]] if len(marked) > 1 else lines[marked[-1] - 1]
    chosen = re.sub(r"^(?:(?:fatal|error|remote):\s*)+", "", chosen)
    return without_credentials(chosen)[:500].rstrip(".")


class Git:
    """Runs git. `folder` (0700) is its HOME and holds its configuration; `environment` is added as it is. `before`: a
    command that ends in git's."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], *, program: str = "git", before: Sequence[str] = ()
    ) -> None:
        self._folder = folder
        self._environment = dict(environment)
        self._program = program
        self._before = tuple(before)

    async def run(
        self,
        place: Place | None,
        *arguments: str,
        source: Path | None = None,
        protocols: tuple[str, ...] = (),
        extra: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        seconds: float = 3600.0,
        largest_file: int | None = None,
    ) -> bytes:
        """Runs one command to its end and returns its standard output, at most `OUTPUT_LIMIT` bytes.

        `source` is the one repository of another owner that may be read, `protocols` those that may be spoken
        (none, if left out). Raises `GitFailed`; a command that runs longer than `seconds` is killed with all
        that it started, and so is one whose task is cancelled. `largest_file`: no file that it writes gets over
        so many bytes.
        """
        options = [] if place is None else place.options()
        environment = await asyncio.to_thread(self._surroundings, source, protocols)
        bound = () if largest_file is None else (_PRLIMIT, f"--fsize={largest_file}:{largest_file}", "--")
        given = _in_memory(stdin) if stdin else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            process = await asyncio.create_subprocess_exec(
                *self._before,
                *bound,
                self._program,
                *options,
                *arguments,
                stdin=given,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**environment, **(extra or {})},
                cwd="/",
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise GitFailed(arguments[0], _MISSING, _NOT_INSTALLED) from error
        finally:
            os.close(given)
        try:
            async with asyncio.timeout(seconds):
                output, message = await _drain(process)
                code = await process.wait()
        except TimeoutError as error:
            raise GitFailed(arguments[0], -1, f"it took longer than {seconds:.0f} s") from error
        finally:
            await _end(process)
        if output is None:
            raise GitFailed(arguments[0], code, f"it printed more than {OUTPUT_LIMIT >> 20} MiB")
        if code == _MISSING and self._before:
            raise GitFailed(arguments[0], code, _NOT_INSTALLED)
        if code != 0:
            text = message.decode(errors="replace")
            raise GitFailed(arguments[0], code, last_line(text), without_credentials(text))
        return output

    def _surroundings(self, source: Path | None, protocols: tuple[str, ...]) -> dict[str, str]:
        return {
            "PATH": _SEARCH_PATH,
            **self._environment,
            "HOME": str(self._folder),
            "XDG_CONFIG_HOME": str(self._folder),
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self._configuration(source)),
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_ALLOW_PROTOCOL": ":".join(protocols) or "none",
            "GIT_PROTOCOL_FROM_USER": "0",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            "SSH_ASKPASS": "true",
            "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oClearAllForwardings=yes -oConnectTimeout=30",
            "GIT_SSH_VARIANT": "ssh",
        }

    def _configuration(self, source: Path | None) -> Path:
        """Writes the one configuration file that git reads for this source, unless it lies there already."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        safe = [] if source is None else _safe_directories(source)
        text = _SETTINGS + "".join(f"\tdirectory = {quoted(str(path))}\n" for path in safe)
        file = self._folder / f"gitconfig-{hashlib.sha256(os.fsencode(text)).hexdigest()[:16]}"
        if not file.exists():
            draft = self._folder / f"{file.name}.{os.getpid()}.{os.urandom(4).hex()}"
            draft.write_bytes(os.fsencode(text))
            draft.replace(file)
        return file


def failed_checkout(what: str, error: GitFailed) -> JobProblem:
    """The sentence for the person who reads the run: what was tried, and what git said."""
    return JobProblem(Cause.CHECKOUT_FAILED, f"{without_credentials(what)}: git says: {error.sentence}.")


def _in_memory(content: bytes) -> int:
    """A descriptor to read the content from: nothing has to be fed, whenever the reader ends."""
    descriptor = os.memfd_create("git-stdin", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


async def _drain(process: asyncio.subprocess.Process) -> tuple[bytes | None, bytes]:
    """Reads both outputs to their ends; None instead of the first when there is too much of it."""
    assert process.stdout is not None
    assert process.stderr is not None

    async def drain(reader: asyncio.StreamReader, limit: int) -> tuple[bytes, int]:
        kept, total = bytearray(), 0
        while chunk := await reader.read(1 << 16):
            total += len(chunk)
            kept += chunk
            if len(kept) > limit:  # the end counts: that is where a failure is told
                del kept[: len(kept) - limit]
        return bytes(kept), total

    async with asyncio.TaskGroup() as pipes:
        out = pipes.create_task(drain(process.stdout, OUTPUT_LIMIT), name="git stdout")
        err = pipes.create_task(drain(process.stderr, _MESSAGE_LIMIT), name="git stderr")
    output, total = out.result()
    return (output if total <= OUTPUT_LIMIT else None), err.result()[0]


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kills the command and all that it started (it leads its own session), and reaps it."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await asyncio.shield(process.wait())


def _safe_directories(source: Path) -> list[Path]:
    """The names under which git asks whether the source may be read: itself and the folders that `.git` names."""
    found = [source, Path(os.path.realpath(source))]
    top = found[-1]
    dot = top / ".git"
    if dot.is_dir():
        found += [dot, Path(os.path.realpath(dot))]
    elif dot.is_file():
        first = dot.read_bytes()[:4096].decode(errors="surrogateescape").partition("\n")[0]
        if first.startswith("gitdir:"):
            git_dir = Path(os.path.realpath(top / first.removeprefix("gitdir:").strip()))
            found.append(git_dir)
            if (common := git_dir / "commondir").is_file():
                there = common.read_bytes()[:4096].decode(errors="surrogateescape").strip()
                found.append(Path(os.path.realpath(git_dir / there)))
    return list(dict.fromkeys(found))


def quoted(value: str) -> str:
    """A value of git's configuration language."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'
