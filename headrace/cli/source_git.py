"""Git as the user's own command runs it: the user's configuration and credentials, but no prompt and no hook."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_CREDENTIALS = re.compile(r"(?<=://)[^/\s@'\"]+@")
# Set while git runs a hook of the user's: they would name another repository than the one that is asked for.
_FOREIGN = frozenset(
    f"GIT_{name}"
    for name in (
        *("DIR", "WORK_TREE", "COMMON_DIR", "INDEX_FILE", "OBJECT_DIRECTORY", "ALTERNATE_OBJECT_DIRECTORIES"),
        *("PREFIX", "NAMESPACE", "CEILING_DIRECTORIES", "QUARANTINE_PATH", "SHALLOW_FILE", "GRAFT_FILE"),
        *("LITERAL_PATHSPECS", "GLOB_PATHSPECS", "NOGLOB_PATHSPECS", "ICASE_PATHSPECS", "EXTERNAL_DIFF"),
        *("TRACE", "TRACE2", "TRACE_SETUP", "INTERNAL_SUPER_PREFIX"),
    )
)
# Nothing of this may write below the user's `.git`, or start a program of the repository's choosing.
_QUIET = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.splitIndex=false",
    "core.quotePath=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.addEmbeddedRepo=false",
    "i18n.commitEncoding=utf-8",
    "protocol.ext.allow=never",
)


class SourceError(Exception):
    """What a person asked to build cannot be had; the message is one sentence with its mend."""


class GitError(Exception):
    """A git command failed; `sentence` is its own last line, without credentials."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


@dataclass(frozen=True)
class UserGit:
    """Runs git in the environment given, less what would lead it to another repository."""

    environment: Mapping[str, str]
    options: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    def at(self, *options: str, **variables: str) -> UserGit:
        """The same, with options before the command (`-C`, `--git-dir=…`) and variables of git's."""
        return UserGit(self.environment, (*self.options, *options), {**self.variables, **variables})

    def raw(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """Standard output of one command. Raises `GitError`, or `SourceError` where git is not installed."""
        try:
            done = subprocess.run(
                self.command(*arguments), env=self.surroundings(), input=stdin, capture_output=True, check=False
            )
        except FileNotFoundError as error:
            raise SourceError("git is not installed: install it with your system's packages.") from error
        if done.returncode != 0:
            raise GitError(last_line(done.stderr.decode(errors="replace")))
        return done.stdout

    def text(self, *arguments: str, stdin: bytes = b"") -> str:
        """Standard output as text (file names as the system has them), without the last newline."""
        return self.raw(*arguments, stdin=stdin).decode(errors="surrogateescape").removesuffix("\n")

    def command(self, *arguments: str) -> list[str]:
        """The whole command line."""
        return ["git", *(part for setting in _QUIET for part in ("-c", setting)), *self.options, *arguments]

    def surroundings(self) -> dict[str, str]:
        """The environment of a command."""
        kept = {name: value for name, value in self.environment.items() if name not in _FOREIGN}
        ours = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C.UTF-8"}
        return {**kept, **ours, **self.variables}


def last_line(message: str) -> str:
    """Git's last `fatal:` or `error:` line, else its last line, without credentials."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", message) if line.strip()]
    marked = [i for i, line in enumerate(lines) if line.startswith("fatal:")]
    marked = marked or [i for i, line in enumerate(lines) if line.startswith(("error:", "remote:"))]
    if not lines:
        return "it said nothing"
    chosen = lines[marked[-1]] if marked else lines[-1]
    if chosen.endswith(":") and lines[-1] != chosen:  # git breaks the line there
        chosen = f"{chosen} {lines[lines.index(chosen) + 1]}"
    if "Could not read from remote repository" in chosen and marked[-1]:  # an earlier line says why
        chosen = lines[marked[-2]] if len(marked) > 1 else lines[marked[-1] - 1]
    return without_credentials(re.sub(r"^(?:(?:fatal|error|remote):\s*)+", "", chosen))[:500].rstrip(".")


def without_credentials(text: str) -> str:
    """The text with `user:password@` cut out of every URL in it."""
    return _CREDENTIALS.sub("", text)
