"""The one small protocol behind which every sandbox stands.

A sandbox only *prepares* a place and says how to start it. The supervisor starts it (bubblewrap, host) or is
told of it (docker), and everything after that - steps, output, timeouts, the end - is the supervisor's and the
same for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from headrace.pipeline.plan import Network, SandboxKind


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may take; None: whatever the slot's share is."""

    cpu: float | None = None
    """Cores."""
    memory: int | None = None
    """Bytes."""
    pids: int | None = None


@dataclass(frozen=True, slots=True)
class Bind:
    """A host path made visible in the sandbox."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """A container beside the job's own, on the network of the two."""

    name: str
    """Its host name."""
    image: str
    env: Mapping[str, str]
    """May hold secrets: never in a log."""
    ready: str
    """A command of sh in the container; empty: ready when it runs."""
    timeout_s: float
    """To become ready, from its start."""


@dataclass(frozen=True, slots=True)
class ServiceState:
    """One look at a service."""

    running: bool
    ready: bool
    """Its ready command has succeeded once, or there is none."""
    exit_code: int = 0
    """Of one that runs no more."""
    out_of_memory: bool = False
    said: str = ""
    """The last thing that the ready command wrote, or why it could not be run, in one line."""
    shell_missing: bool = False
    """There is a ready command, and no sh to run it."""
    limits: Limits = field(default_factory=Limits)
    """What it was given of the slot."""


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """All that a sandbox is told about the attempt that it is for."""

    attempt: int
    agent: str
    """The agent's instance id: everything made for the attempt is marked with it."""
    slot: int
    """From 0, below the agent's number of slots: picks the slot's own uid."""
    folder: Path
    """The attempt's folder `A` of sandbox.md; `A/io` becomes `/hr`, read-only."""
    workspace: Path
    """Becomes `/workspace`, writable."""
    network: Network
    image: str = ""
    limits: Limits = field(default_factory=Limits)
    binds: tuple[Bind, ...] = ()
    """Read-only extras, such as the mirror's objects that the workspace borrows."""
    trusted: bool = False
    own_code: bool = False
    """The user's own code on the user's own machine (a local `headrace run` of a path): `network: full` may
    share the host's network."""
    services: tuple[Service, ...] = ()
    """Begun before the job's own sandbox is prepared (`ServiceHost`); they share the slot with it."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """The supervisor starts this itself and stays its parent (bubblewrap, host).

    `argv` has one `{status_fd}` placeholder where the runtime wants the number of the descriptor to which it
    writes its JSON status lines (bubblewrap's `--json-status-fd`); without it pid 1 is the child itself.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    pass_files: Mapping[str, str] = field(default_factory=dict)
    """Placeholder name in argv -> file opened read-only and passed by number (a seccomp program, say)."""
    cgroups: tuple[Path, ...] = ()
    """Folders whose `cgroup.procs` the child joins before it executes, outermost first."""


@dataclass(frozen=True, slots=True)
class Attach:
    """A container that the engine has started; the supervisor proves `pid` by its cgroup."""

    pid: int
    container: str


Launch = Spawn | Attach


@dataclass(frozen=True, slots=True)
class Prepared:
    """A place ready to be started."""

    launch: Launch
    env: Mapping[str, str]
    """The base environment of every step: the image's ENV, or PATH and HOME of a bubblewrap sandbox."""
    workspace: str = "/workspace"
    """Where the steps find the workspace."""
    control: str = "/hr"
    """Where the steps find the attempt's `io` folder."""
    cgroups: tuple[Path, ...] = ()
    """Cgroup folders (v1: one per controller; v2: one) whose memory and pids files tell an out-of-memory kill;
    empty where there is none (a plain user's agent)."""
    image: str = ""
    """Digest of the image that it is made of; empty: of none."""


@dataclass(frozen=True, slots=True)
class Ability:
    """What a sandbox kind can do on this machine: what the agent advertises."""

    kind: SandboxKind
    networks: frozenset[Network]
    hard_limits: bool
    """Whether memory, cpu and pids limits are enforced by the kernel."""
    why_not: str = ""
    """One sentence when the kind cannot be used here; then `networks` is empty."""


class NotRemovedError(Exception):
    """Something that was made for an attempt could not be removed; trying again is safe. One sentence."""


class NotSeenError(Exception):
    """The engine does not say how a service is. One sentence."""


class Sandbox(Protocol):
    """One way to hold a job. Problems of the job are raised as `agent.problems.JobProblem`, with their cause."""

    kind: SandboxKind

    async def ability(self) -> Ability:
        """Tries, for real, whether this kind works here (a trivial sandbox is started and ended)."""
        ...

    async def prepare(self, request: SandboxRequest) -> Prepared:
        """Makes everything up to the start: image, network, cgroup, container; docker: started and waiting."""
        ...

    async def remove(self, attempt: int) -> None:
        """Kills what still runs of the attempt and removes all that was made for it; repeatable, also after a crash of
        whoever made it. Raises `NotRemovedError`.
        """
        ...

    async def sweep(self, keep: frozenset[int]) -> None:
        """Removes all that bears this agent's id but belongs to no attempt in `keep`."""
        ...


@runtime_checkable
class Emptying(Protocol):
    """A sandbox whose jobs may be somebody else than the agent, and that can remove what they leave."""

    async def empty(self, attempt: int, folder: Path, names: Sequence[str], image: str) -> None:
        """Removes the folders `names` of `folder`; `image` is that of `Prepared`. Raises `NotRemovedError`."""
        ...


class ServiceHost(Protocol):
    """What can hold services beside a job. `Sandbox.remove` and `sweep` take them away with all else."""

    async def open_network(self, request: SandboxRequest) -> None:
        """Makes the network of the job and its services, with its rules. Raises `JobProblem`."""
        ...

    async def begin_service(self, request: SandboxRequest, wanted: Service) -> None:
        """Starts one of the request's services; it runs then, or has already ended. Raises `JobProblem`."""
        ...

    async def services(self, attempt: int) -> Mapping[str, ServiceState]:
        """A look at the attempt's services, by name, whoever started them. Raises `NotSeenError`."""
        ...

    async def service_log(self, attempt: int, name: str) -> bytes:
        """The last of what a service wrote, 64 KiB at most. Raises `NotSeenError`."""
        ...
