"""The embedded coordinator: who owns it, where it is, and that it is gone when its owner is.

```
<state>/             0700, `$XDG_STATE_HOME/headrace`
    owner.lock       flock held by the living owner
    endpoint.json    0600: address, token, pid … of the live coordinator, written by its owner
    children.json    process ids and start times of the owner's daemons, for the one who cleans after it
    coordinator/     the coordinator's data directory
    agent/           the agent's
    log/             what the daemons print
    artifacts/RUN/   artifacts of local runs
```
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from headrace.cli.output import note
from headrace.cli.processes import READY_WITHIN, STOP_WITHIN, Daemon, Interrupts, Processes, command, stop_orphans
from headrace.errors import HeadraceError, ServerFailed

_PATIENCE = 2 * (READY_WITHIN + STOP_WITHIN)
"""Seconds to wait for another command that is just starting or stopping its coordinator and agent."""


class Taken(ServerFailed):
    """Another command has become the owner, or is looking whether there is one."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A live coordinator. `agent`: whether it has an agent of its own, so that a run can be done there."""

    address: str
    token: str = field(repr=False)
    pid: int
    http: str
    agent: bool


class Owner:
    """This process, as the owner of the embedded coordinator."""

    def __init__(self, endpoint: Endpoint, processes: Processes, agent_token: str, state: Path) -> None:
        self.endpoint = endpoint
        self.processes = processes
        self.agent_token = agent_token
        self.state = state

    def offer(self) -> None:
        """Lets other commands find the coordinator."""
        write_private(self.state / "endpoint.json", json.dumps(asdict(self.endpoint)))

    def withdraw(self) -> None:
        """Lets no other command find it any more: they wait until this process has ended, and start their own."""
        (self.state / "endpoint.json").unlink(missing_ok=True)


class Embedded:
    """The embedded state below one folder. `daemon` is the command line before `coordinator` and `agent`."""

    def __init__(self, state: Path, environment: Mapping[str, str], daemon: Sequence[str] | None = None) -> None:
        self.state = state
        self._environment = environment
        self._daemon = tuple(daemon or command())

    def live(self, *, with_agent: bool) -> Endpoint | None:
        """The coordinator that another command owns, once it is ready; None if there is none.

        With `with_agent`, one that was started only to answer a question is waited out.
        """
        deadline = time.monotonic() + _PATIENCE
        while self._owned():
            endpoint = self._read_endpoint()
            if endpoint is not None and (endpoint.agent or not with_agent) and _answers(endpoint):
                return endpoint
            if time.monotonic() > deadline:
                raise ServerFailed(
                    f"another headrace command holds {self.state} and its coordinator does not answer: "
                    f"see {self.state / 'log'}, or end process {endpoint.pid if endpoint else 'that holds it'}"
                )
            time.sleep(0.05)  # flock has no way to wait with a time limit
        return None

    @contextmanager
    def live_or_own(
        self, *, with_agent: bool, may_grow: bool = False, listen: str = "127.0.0.1:0", http: str = "127.0.0.1:0"
    ) -> Iterator[Endpoint | Owner]:
        """The coordinator of another command, or this process as its owner: of several that begin at once, one owns."""
        with ExitStack() as stack:
            found: Endpoint | Owner | None = None
            while found is None:
                found = self.live(with_agent=with_agent)
                if found is None:
                    with suppress(Taken):
                        owned = self.own(with_agent=with_agent, may_grow=may_grow, listen=listen, http=http)
                        found = stack.enter_context(owned)
            yield found

    @contextmanager
    def own(
        self, *, with_agent: bool, may_grow: bool = False, listen: str = "127.0.0.1:0", http: str = "127.0.0.1:0"
    ) -> Iterator[Owner]:
        """Starts the coordinator (and an agent), and stops them at the end, whatever happens in between.

        `may_grow`: other agents may come, so a job that none can take waits instead of failing at once.
        Raises Taken at once where another command holds the lock.
        """
        self._make_folders()
        interrupts = Interrupts()
        with self._lock(), interrupts.heeded():
            stop_orphans(self.state / "children.json")
            (self.state / "endpoint.json").unlink(missing_ok=True)
            processes = Processes(self.state / "children.json", self.state / "log", interrupts)
            try:
                try:
                    fleet = () if may_grow else ("--embedded",)
                    given = (*fleet, "--listen", listen, "--http-listen", http)
                    yield self._start(processes, given, with_agent=with_agent)
                finally:
                    self._end(processes)
            finally:  # the one interrupt that there can be may have come in the midst of that
                self._end(processes)

    def _end(self, processes: Processes) -> None:
        (self.state / "endpoint.json").unlink(missing_ok=True)
        for name in processes.stop():
            left = {"agent": "sandboxes, mounts and folders of its jobs", "coordinator": "its database's processes"}
            note(f"the {name} had to be killed; the next `headrace run` takes away what it left: {left[name]}")

    def _start(self, processes: Processes, given: tuple[str, ...], *, with_agent: bool) -> Owner:
        flags = ("--blob-listen", "127.0.0.1:0", "--local-paths", *given)
        data = self.state / "coordinator"
        ready = processes.start(
            Daemon("coordinator", (*self._daemon, "coordinator", "--data-dir", str(data), *flags), self._inherited())
        )
        endpoint = Endpoint(
            str(ready["address"]), _token(data, "client"), os.getpid(), str(ready.get("http", "")), with_agent
        )
        agent_token = _token(data, "agent")
        if with_agent:
            where = {"HEADRACE_URL": endpoint.address, "HEADRACE_TOKEN": agent_token}
            arguments = ("agent", "--name", "local", "--data-dir", str(self.state / "agent"), "--local")
            processes.start(Daemon("agent", (*self._daemon, *arguments), self._inherited() | where))
        owner = Owner(endpoint, processes, agent_token, self.state)
        owner.offer()
        return owner

    def _inherited(self) -> dict[str, str]:
        """The user's environment for a daemon, without another coordinator's address and credential."""
        left_out = {"HEADRACE_URL", "HEADRACE_TOKEN", "HEADRACE_INSECURE", "HEADRACE_CA_FILE"}
        return {name: value for name, value in self._environment.items() if name not in left_out}

    def _make_folders(self) -> None:
        try:
            self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.state.chmod(0o700)
            (self.state / "log").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise unusable(self.state, error) from error

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.state / "owner.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Taken(f"another headrace command holds {self.state}") from None
            yield

    def _owned(self) -> bool:
        """Whether a living process holds the lock: the kernel drops it with its holder, however that ends."""
        try:
            with (self.state / "owner.lock").open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # not there, or not to be used: who makes the folder says why
            return False
        return False

    def _read_endpoint(self) -> Endpoint | None:
        with suppress(OSError, ValueError, TypeError):
            return Endpoint(**json.loads((self.state / "endpoint.json").read_text()))
        return None


def _answers(endpoint: Endpoint) -> bool:
    from headrace.client import RetryPolicy, SyncClient

    with SyncClient(endpoint.address, endpoint.token, policy=RetryPolicy(patience_at_first=0)) as client:
        try:
            client.runs(limit=1)
        except HeadraceError:
            return False
    return True


def _token(data: Path, name: str) -> str:
    try:
        return (data / "tokens" / name).read_text().strip()
    except OSError as error:
        raise ServerFailed(f"the coordinator left no token in {data}: {error.strerror}") from error


def unusable(state: Path, error: OSError) -> ServerFailed:
    """What to say of a state folder that cannot be made or written to."""
    return ServerFailed(f"cannot use {state}: {error.strerror}; XDG_STATE_HOME chooses another folder")


def write_private(path: Path, text: str) -> None:
    """Writes a 0600 file whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)
    part.replace(path)
