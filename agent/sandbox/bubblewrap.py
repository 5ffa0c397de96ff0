"""Jobs in a bubblewrap sandbox: no engine, no image, the machine's own `/usr` and little else of it.

What a job can see is `view.py`. A root agent starts it under a slot's own uid (`staging.py`), in a cgroup
and, for `network: full`, in a filtered network namespace (`veth.py`); a plain user's agent has rlimits
only, and says so.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agent.problems import Cause, JobProblem
from agent.sandbox import entry, etc, seccomp, trial
from agent.sandbox.cgroups import Cgroups
from agent.sandbox.commands import CommandFailedError
from agent.sandbox.limits import granted
from agent.sandbox.protocol import Ability, Bind, Limits, NotRemovedError, Prepared, SandboxRequest, Spawn
from agent.sandbox.staging import Staging
from agent.sandbox.veth import VethNetworks
from agent.sandbox.view import View, argv
from headrace.pipeline.plan import Network, SandboxKind

_OPEN_FILES: Final = 65_536
_NO_STAGING: Final = "a root agent cannot give its jobs a uid of their own here: install util-linux, or use docker"


@dataclass(frozen=True, slots=True)
class Shown:
    """What the operator lets jobs see of this machine, beyond `/usr`."""

    tool_paths: tuple[Path, ...] = ()
    """Toolchains outside `/usr` (a pyenv Python, say): read-only at their own path, their `bin` on PATH."""
    read_only_paths: tuple[Path, ...] = ()
    """Files and folders shown read-only at their own path; also below /etc."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Proxy, certificate and package index settings, given to every step."""
    resolvers: tuple[str, ...] = ()
    """Addresses of the name servers for jobs with a network of their own."""
    scratch: int = 2 << 30
    """Bytes that each of /tmp, /var, /run, /dev/shm and home may hold, in memory."""

    def paths(self) -> tuple[Path, ...]:
        """All that the operator lists."""
        return (*self.tool_paths, *self.read_only_paths)


class Bubblewrap:
    """The bubblewrap sandbox. Everything it needs is passed in; None stands for what this machine cannot
    do."""

    kind = SandboxKind.BUBBLEWRAP

    def __init__(
        self,
        *,
        binary: Path,
        state: Path,
        slot: Limits,
        shown: Shown,
        staging: Staging | None,
        cgroups: Cgroups | None,
        networks: VethNetworks | None,
        busybox: Path | None = None,
        own_network: bool = False,
    ) -> None:
        """`binary`: the wheel's bwrap. `state`: a folder of the agent's, for what is made once. `slot`: a
        share.

        `staging`: a root agent has it, and no other. `busybox`: a static one, as control shell.
        `own_network`: this agent serves a local `headrace run`, whose own code may share the host's network.
        """
        self._binary = binary
        self._state = state
        self._slot = slot
        self._shown = shown
        self._staging = staging
        self._cgroups = cgroups
        self._networks = networks
        self._busybox = busybox
        self._own_network = own_network

    async def ability(self) -> Ability:
        """Starts a trivial sandbox as a job's would be, without its files."""
        if self._would_be_root():
            return self._cannot(_NO_STAGING)
        missing = [path for path in self._shown.paths() if not path.exists()]
        if missing:
            return self._cannot(f"{missing[0]} is listed as a path for jobs but does not exist here")
        try:
            filter_file = _write_filter(self._state)
        except seccomp.UnknownMachineError as error:
            return self._cannot(str(error))
        command = ("/usr/bin/prlimit", "--core=1:1", "/usr/bin/true")
        argv = self._start(0, View(read_only=self._read_only()), command, None)
        tried = await trial.run(Spawn(argv, pass_files={"seccomp": str(filter_file)}))
        if tried.code != 0:
            return self._cannot(_why_not(tried))
        if self._cgroups is not None and not await self._cgroups.try_out(self._slot):
            self._cgroups = None
        full = self._own_network or (self._networks is not None and await self._networks.try_out())
        networks = {Network.NONE, Network.FULL} if full else {Network.NONE}
        return Ability(self.kind, frozenset(networks), hard_limits=self._cgroups is not None)

    def _cannot(self, why: str) -> Ability:
        return Ability(self.kind, frozenset(), hard_limits=False, why_not=why)

    async def prepare(self, request: SandboxRequest) -> Prepared:
        """Makes the attempt's /etc and filter, its cgroup and its network, and says how to start it.

        Raises `JobProblem`; `remove` then takes away what was made so far.
        """
        if self._would_be_root():
            raise JobProblem(Cause.REFUSED, _NO_STAGING)
        try:
            return await self._prepare(request)
        except OSError as error:
            sentence = f"the sandbox could not be prepared: {error.filename or 'the kernel'}: {error.strerror}"
            raise JobProblem(Cause.ERRORED, sentence) from error

    def _would_be_root(self) -> bool:
        """A job of a root agent must not be root outside of its sandbox, whatever becomes of the sandbox."""
        return self._staging is None and os.geteuid() == 0

    async def _prepare(self, request: SandboxRequest) -> Prepared:
        wants_network = request.network is Network.FULL
        shares = wants_network and request.own_code and self._own_network
        namespace = await self._namespace(request.attempt) if wants_network and not shares else None
        limits = granted(request.limits, self._slot)
        cgroups = () if self._cgroups is None else self._cgroups.make(request.attempt, limits)
        if self._staging is not None:
            uid = self._staging.uid(request.slot)
            if request.workspace.stat().st_uid != uid:  # a checkout hands its tree over by itself
                await asyncio.to_thread(_give, request.workspace, uid)
        view = View(
            read_only=self._read_only(),
            files=self._etc(request, shares=shares),
            binds=self._binds(request),
            scratch=self._shown.scratch,
            share_network=wants_network,
        )
        command = (*self._rlimits(limits), *entry.argv(self._busybox, "/usr/bin/sh"))
        spawn = Spawn(
            argv=self._start(request.slot, view, command, namespace),
            pass_files={"seccomp": str(_write_filter(request.folder))},
            cgroups=cgroups,
        )
        return Prepared(spawn, env=self._env(), workspace=entry.WORKSPACE, control=entry.CONTROL, cgroups=cgroups)

    async def remove(self, attempt: int) -> None:
        """Kills what is left in the attempt's cgroup, removes it and the attempt's network.

        Raises `NotRemovedError`; it may be tried again.
        """
        try:
            if self._cgroups is not None:
                await self._cgroups.remove(attempt)
            if self._networks is not None:
                await self._networks.remove(attempt)
        except (CommandFailedError, OSError) as error:
            raise NotRemovedError(f"what attempt {attempt} left is not removed: {error}") from error

    async def sweep(self, keep: frozenset[int]) -> None:
        """Removes cgroups and networks of attempts that are not in `keep`."""
        left: frozenset[int] = frozenset()
        if self._cgroups is not None:
            left |= self._cgroups.attempts()
        if self._networks is not None:
            left |= await self._networks.attempts()
        for attempt in sorted(left - keep):
            await self.remove(attempt)

    async def _namespace(self, attempt: int) -> Path:
        if self._networks is None:
            sentence = "this agent cannot give a bubblewrap job a network: say `network: none`, or use docker"
            raise JobProblem(Cause.REFUSED, sentence)
        return await self._networks.make(attempt)

    def _etc(self, request: SandboxRequest, *, shares: bool) -> dict[str, Path]:
        files = etc.write(request.folder / "etc", request.network, self._shown.resolvers)
        if shares:  # the host's network is used under the host's names
            files |= {name: Path(name) for name in ("/etc/hosts", "/etc/resolv.conf")}
        return files

    def _read_only(self) -> tuple[Path, ...]:
        return (*etc.shown(), *self._shown.paths())

    def _binds(self, request: SandboxRequest) -> tuple[Bind, ...]:
        busybox = () if self._busybox is None else (Bind(self._busybox, entry.BUSYBOX),)
        return (
            Bind(request.folder / "io", entry.CONTROL),
            *busybox,
            Bind(request.workspace, entry.WORKSPACE, writable=True),
            *request.binds,
        )

    def _rlimits(self, limits: Limits) -> tuple[str, ...]:
        """A core limit of 1 byte keeps the host's crash handler from ever being run on a job's behalf."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        open_files = _OPEN_FILES if most == resource.RLIM_INFINITY else min(most, _OPEN_FILES)
        words = ["/usr/bin/prlimit", "--core=1:1", f"--nofile={open_files}:{open_files}"]
        if self._cgroups is None and limits.pids is not None:  # counted inside the sandbox's user namespace
            words.append(f"--nproc={limits.pids}:{limits.pids}")
        return tuple(words)

    def _env(self) -> dict[str, str]:
        tools = [f"{path}/bin" for path in self._shown.tool_paths if (path / "bin").is_dir()]
        own = {"PATH": ":".join([*tools, entry.PATH]), "HOME": etc.HOME, "USER": etc.USER, "LOGNAME": etc.USER}
        return {**self._shown.env, **own, "LANG": "C.UTF-8"}

    def _start(self, slot: int, view: View, command: Sequence[str], namespace: Path | None) -> tuple[str, ...]:
        """The whole command line: bwrap's own, for a root agent behind the stage that leads to it."""
        if self._staging is None:
            return argv(str(self._binary), view, str, command)
        # The wheel's binary needs its libraries beside it: the folder that holds both is shown.
        home = self._binary.parents[2]
        stage = self._staging.stage(slot, (home, *view.read_only, *(bind.source for bind in view.binds)))
        binary = f"{stage(home)}/{self._binary.relative_to(home)}"
        return stage.argv(argv(binary, view, stage, command), namespace)


def _write_filter(folder: Path) -> Path:
    """The system call filter as a file in `folder`. Raises `seccomp.UnknownMachineError`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "seccomp.bpf"
    file.write_bytes(seccomp.program(platform.machine()))
    return file


def _give(workspace: Path, uid: int) -> None:
    """Makes the slot's uid the owner of a workspace and all in it; follows no link that lies there."""
    os.chown(workspace, uid, uid)
    for _, folders, files, folder in os.fwalk(workspace, follow_symlinks=False):
        for name in (*folders, *files):
            os.chown(name, uid, uid, dir_fd=folder, follow_symlinks=False)


def _why_not(tried: trial.Tried) -> str:
    if "namespace" in tried.said or "uid map" in tried.said:
        return (
            f"this machine does not let this user make user namespaces ({tried.said}): allow them "
            "(on Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0), or use docker"
        )
    return f"bubblewrap does not start here (exit code {tried.code}): {tried.said or 'it said nothing'}"
