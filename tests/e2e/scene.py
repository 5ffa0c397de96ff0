"""A user's machine in one folder: a home, a state folder, repositories, and the commands typed there."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.command_line import Ended
from tests.harness.git_repo import Repository
from tests.harness.leftovers import processes

PASSED_ON = ("PATH", "LANG", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO", "DOCKER_HOST")
PREFIXES = ("PIP_", "UV_")


@dataclass
class User:
    """Who types: root with the checkout that is tested, unless said otherwise."""

    headrace: tuple[str, ...] = (sys.executable, "-m", "headrace")
    uid: int | None = None
    """Another user's, None: our own."""

    def process(self) -> dict[str, Any]:
        """What `subprocess.Popen` has to be told."""
        return {} if self.uid is None else {"user": self.uid, "group": self.uid, "extra_groups": []}


class Started:
    """A command that runs. What it prints goes to files, so that nobody has to read in time."""

    def __init__(self, command: list[str], folder: Path, environment: Mapping[str, str], **how: Any) -> None:
        self._files = [folder / f"out-{time.monotonic_ns()}", folder / f"err-{time.monotonic_ns()}"]
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self.process = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=err, **how
            )
        self.pid = self.process.pid

    @property
    def out(self) -> str:
        """All that it has printed."""
        return self._files[0].read_text(errors="surrogateescape")

    @property
    def raw(self) -> Path:
        """The file of what it has printed."""
        return self._files[0]

    @property
    def err(self) -> str:
        """All that it has said on stderr."""
        return self._files[1].read_text(errors="surrogateescape")

    def until(self, condition: Callable[[Started], bool], seconds: float = 60) -> Started:
        """Waits until the condition holds; a command that ends before fails the test."""
        end = time.monotonic() + seconds
        while not condition(self):
            ended = self.process.poll() is not None
            assert not ended or condition(self), f"it ended with {self.process.returncode}:\n{self.out}\n{self.err}"
            assert time.monotonic() < end, f"it did not come:\n{self.out[-3000:]}\n{self.err[-3000:]}"
            time.sleep(0.03)  # a file tells nobody that it has grown
        return self

    def said(self, text: str, seconds: float = 60) -> Started:
        """Waits until it has printed `text`, on either stream."""
        return self.until(lambda command: text in command.out or text in command.err, seconds)

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    def end(self, seconds: float = 90) -> Ended:
        """Waits for its end; a traceback fails the test."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"it does not end:\n{self.out[-3000:]}\n{self.err[-3000:]}") from None
        assert "Traceback (most recent call last)" not in self.out + self.err, self.out + self.err
        return Ended(code, self.out, self.err)


@dataclass
class Scene:
    """One scratch folder: `home/`, `state/` (XDG_STATE_HOME), `tmp/` (TMPDIR, empty at the end), repositories."""

    folder: Path
    user: User = field(default_factory=User)
    more: dict[str, str] = field(default_factory=dict)
    started: list[Started] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("home", "state", "tmp", "io"):
            folder = self.folder / name
            folder.mkdir(exist_ok=True)
            if self.user.uid is not None:
                os.chown(folder, self.user.uid, self.user.uid)

    @property
    def state(self) -> Path:
        """Where the embedded coordinator keeps what it has."""
        return self.folder / "state" / "headrace"

    @property
    def environment(self) -> dict[str, str]:
        """What every command gets: nothing of the person who runs the tests but the way to the network."""
        keep = {
            name: value
            for name, value in os.environ.items()
            if name in PASSED_ON or name.startswith(PREFIXES) or name.lower().endswith("_proxy")
        }
        own = {
            "HOME": str(self.folder / "home"),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "TMPDIR": str(self.folder / "tmp"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "COLUMNS": "120",
        }
        return keep | own | self.more

    def repository(self, pipeline: str, files: Mapping[str, str] | None = None, name: str = "repo") -> Repository:
        """A repository with one commit that holds the pipeline file."""
        made = Repository(self.folder / name)
        made.commit({"headrace.yml": pipeline, **(files or {})})
        if self.user.uid is not None:
            for path in (made.path, *made.path.rglob("*")):
                os.chown(path, self.user.uid, self.user.uid, follow_symlinks=False)
        return made

    def start(self, *arguments: str, within: Path | str = "repo", **environment: str) -> Started:
        """Starts `headrace` in a folder (relative: below the scene's)."""
        return self.command([*self.user.headrace, *arguments], within, **environment)

    def command(self, command: list[str], within: Path | str = "repo", **environment: str) -> Started:
        """Starts any command as the scene's user."""
        place = self.folder / within
        started = Started(
            command,
            self.folder / "io",
            self.environment | environment,
            cwd=place if place.is_dir() else self.folder,
            **self.user.process(),
        )
        self.started.append(started)
        return started

    def __call__(self, *arguments: str, within: Path | str = "repo", seconds: float = 120, **environment: str) -> Ended:
        """Runs `headrace` to its end."""
        return self.start(*arguments, within=within, **environment).end(seconds)

    def json(self, *arguments: str, within: Path | str = "repo", **environment: str) -> Any:
        """What a command that must succeed prints with --json."""
        done = self.start(*arguments, "--json", within=within, **environment).end()
        assert done.code == 0, done.err
        return json.loads(done.out)

    @contextlib.contextmanager
    def up(self, *arguments: str, **environment: str) -> Iterator[Up]:
        """`headrace up` while inside; ended by TERM like a service."""
        ports = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
        command = self.start("up", *ports, "--json", *arguments, **environment)
        command.until(lambda each: "\n" in each.out, 90)
        found = Up(self, command, json.loads(command.out.splitlines()[0])["address"])
        try:
            yield found
        finally:
            command.signal(signal.SIGTERM)
            done = command.end()
        assert done.code == 0, done.err

    def close(self) -> None:
        """Ends what a failed test left running: told twice, an agent cancels its jobs."""
        for number, seconds in ((signal.SIGTERM, 5.0), (signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
            for each in self.started:
                if each.process.poll() is None:
                    each.process.send_signal(number)
            for each in self.started:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    each.process.wait(seconds)


@dataclass
class Up:
    """A coordinator in the foreground."""

    scene: Scene
    command: Started
    address: str

    def token(self, name: str) -> str:
        """The credential of clients or agents."""
        return (self.scene.state / "coordinator" / "tokens" / name).read_text().strip()

    def agent(self, name: str, *arguments: str, token: str | None = None, **environment: str) -> Started:
        """Starts another agent."""
        folder = self.scene.folder / f"agent-{name}"
        return self.scene.start(
            "agent", "--url", self.address, "--name", name, "--data-dir", str(folder), *arguments,
            HEADRACE_TOKEN=self.token("agent") if token is None else token, **environment,
        )  # fmt: skip

    def connected(self, *wanted: str, seconds: float = 60) -> None:
        """Waits until these agents are connected."""
        end = time.monotonic() + seconds
        while not set(wanted) <= (there := self.presences().get("connected", set())):
            assert time.monotonic() < end, f"only {there} are connected"

    def presences(self) -> dict[str, set[str]]:
        """Presence -> names of agents."""
        found: dict[str, set[str]] = {}
        for each in self.scene.json("agents"):
            found.setdefault(each["presence"], set()).add(each["name"])
        return found


def pids(*words: str) -> list[int]:
    """Processes whose command line has all these words."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                if all(word in line for word in words):
                    found.append(int(folder.name))
    return found


def supervisors(folder: Path) -> list[int]:
    """Supervisors of attempts whose folders lie below a folder, without their guards."""
    parents = {}
    for pid in pids("supervisor/main.py", str(folder)):
        with contextlib.suppress(OSError):
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return [pid for pid, parent in parents.items() if parent not in parents]


def sandboxes(folder: Path) -> list[int]:
    """First processes of the sandboxes whose workspace lies below a folder."""
    found = []
    for pid, _ in processes([str(folder)]):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            numbers = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
            if len(numbers) > 1 and numbers[-1] == "1":
                found.append(pid)
    return found


def kill_and_wait(pid: int) -> None:
    """kill -9, and wait until the process is no more."""
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        assert select.select([descriptor], [], [], 30)[0], f"process {pid} does not die"
    finally:
        os.close(descriptor)


def make_scratch(name: str) -> Path:
    """A folder with a short path that every user may pass through."""
    letters = "".join(letter for letter in name if letter.isalnum() or letter == "_")[:24]
    folder = Path(f"/tmp/hr-e2e-{os.getpid()}-{letters}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o755)
    return folder
