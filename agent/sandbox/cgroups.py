"""Cgroups of an agent's jobs: `headrace/<agent id>/<attempt>`, with hard limits, and the files that tell an
out-of-memory kill from a failed command.

All jobs of the machine are in `headrace`, which weighs little beside whatever else wants the CPU; those of one agent
are in its group, which is bounded as a whole, so that the agent holds out. Both are there while jobs are.

Version 1 has a tree for each controller, version 2 one tree. Whoever starts the sandbox joins the folders
that `make` returns before it executes anything; `remove` kills what is still inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from agent.sandbox import names
from agent.sandbox.protocol import Limits

_PERIOD_US: Final = 100_000
_V1_NEEDED: Final = ("memory", "pids")
_V1_WANTED: Final = ("memory", "pids", "cpu")
_V2_NEEDED: Final = frozenset({"memory", "pids"})
_WATCHED: Final = frozenset({"memory", "pids", "cpu", "cpuacct", ""})
_WEIGHT: Final[Mapping[str, tuple[str, str]]] = {"cpu": ("cpu.shares", "512"), "": ("cpu.weight", "50")}
"""Half of what a group, or a process in none, has that says nothing. All jobs together have it once: less would starve
them on a machine that has something else to do as well."""
_TRIAL: Final = 0
"""No attempt has this number."""
_TRIES: Final = 200
_ENGINE_TRIES: Final = 1000
_PAUSE_S: Final = 0.01


class Cgroups:
    """The cgroups of one agent. `folders` are the roots of the trees: controller -> folder, for version 2
    `""`."""

    def __init__(
        self, agent: str, folders: Mapping[str, Path], *, together: Limits, others: Iterable[Path] = ()
    ) -> None:
        """`together`: the bounds of all jobs of this agent. `others`: roots of trees that are not ours to limit, in
        which an engine makes the group too.
        """
        self.inside = f"/headrace/{names.checked(agent)}"
        """The agent's group, as an engine names it."""
        self._bases = {name: folder / self.inside[1:] for name, folder in folders.items()}
        self._others = tuple(folder / self.inside[1:] for folder in others)
        self._together = together
        self._held: set[int] = set()
        self.works = True
        """Whether groups could be made when they were tried out."""

    @classmethod
    def find(cls, agent: str, mounts: str, together: Limits) -> Cgroups | None:
        """The trees named in `mounts` (the text of /proc/mounts), or None where this process can make no
        cgroup."""
        folders = _version_1(mounts) or _version_2(mounts)
        if not folders or not all(os.access(folder, os.W_OK) for folder in folders.values()):
            return None
        return cls(agent, folders, together=together, others=_all_trees(mounts) - set(folders.values()))

    @property
    def weighs(self) -> bool:
        """Whether jobs can be made to weigh less than the agent."""
        base = self._bases.get("")
        if base is not None:
            return "cpu" in (base.parents[1] / "cgroup.controllers").read_text().split()
        return "cpu" in self._bases

    def hold(self, attempt: int) -> None:
        """Makes the agent's group, with its bounds, and keeps it until `let_go`. Raises OSError."""
        self._held.add(attempt)
        for base in self._others:
            with contextlib.suppress(OSError):  # one that cannot be written is not used by an engine either
                _make(base)
        for controller, base in self._bases.items():
            _make(base)
            if not controller:
                _delegate(base)
            if controller in _WEIGHT:
                name, weight = _WEIGHT[controller]
                _write(base.parent / name, weight)
            _bound(base, _settings(controller, self._together))

    def let_go(self, attempt: int) -> None:
        """The attempt has nothing in the group any more, which goes with the last one."""
        self._held.discard(attempt)
        self.tidy()

    def tidy(self) -> None:
        """Removes the group, unless there is something in it or about to be."""
        if self._held:
            return
        for base in (*self._bases.values(), *self._others):
            for folder in (base, base.parent):  # shared with adopted attempts, and other agents: only when empty
                with contextlib.suppress(OSError):
                    folder.rmdir()

    async def gone(self, name: str) -> None:
        """Waits until an engine has removed a container's folder from the group: it does so a moment later."""
        for _ in range(_ENGINE_TRIES):
            if not any((base / name).is_dir() for base in (*self._bases.values(), *self._others)):
                return
            await asyncio.sleep(_PAUSE_S)

    def make(self, attempt: int, limits: Limits) -> tuple[Path, ...]:
        """Makes the attempt's folders with its limits and returns them. Raises OSError."""
        self.hold(attempt)
        made = []
        for controller, base in self._bases.items():
            folder = base / str(attempt)
            folder.mkdir(exist_ok=True)
            for name, value in _settings(controller, limits).items():
                _write(folder / name, value)
            made.append(folder)
        return tuple(made)

    async def try_out(self, limits: Limits) -> bool:
        """Whether this machine takes folders with such limits: one is made and taken away."""
        try:
            self.make(_TRIAL, limits)
            self.works = True
        except OSError:
            self.works = False
        finally:
            await self.remove(_TRIAL)
        return self.works

    def attempts(self) -> frozenset[int]:
        """The attempts of this agent that have a folder now, whoever made it."""
        return frozenset(
            int(folder.name)
            for base in self._bases.values()
            if base.is_dir()
            for folder in base.iterdir()
            if folder.is_dir() and folder.name.isdecimal()
        )

    async def remove(self, attempt: int) -> None:
        """Kills what is left in the attempt's folders and removes them; a folder that is not there is
        fine."""
        for base in self._bases.values():
            folder = base / str(attempt)
            for _ in range(_TRIES):
                if _gone(folder):
                    break
                await asyncio.sleep(_PAUSE_S)  # the kernel needs a moment after the kill
            else:
                raise OSError(f"{folder} still holds processes after they were killed")
        self.let_go(attempt)


def _make(base: Path) -> None:
    """Makes an agent's folder below `headrace`, which another agent may be about to remove."""
    for last in (False, False, True):
        try:
            base.parent.mkdir(exist_ok=True)
            base.mkdir(exist_ok=True)
        except FileNotFoundError:
            if last:
                raise
        else:
            return


def _bound(base: Path, settings: Mapping[str, str]) -> None:
    """Bounds that may be others than before. The kernel refuses less memory than is in use, which the next job sets;
    and, of a pair, the first that would exceed the second, which is set then after it.
    """
    for _ in range(2):
        for name, value in settings.items():
            with contextlib.suppress(OSError):
                _write(base / name, value)


def _gone(folder: Path) -> bool:
    """Tries to empty and remove `folder`; True when it is no more."""
    if not folder.is_dir():
        return True
    _kill(folder)
    with contextlib.suppress(OSError):
        for inner in sorted(folder.rglob("*"), reverse=True):  # a job cannot make any; a nested runtime might
            if inner.is_dir():
                inner.rmdir()
        folder.rmdir()
    return not folder.is_dir()


def _kill(folder: Path) -> None:
    at_once = folder / "cgroup.kill"
    if at_once.exists():
        _write(at_once, "1")
        return
    for tasks in (folder / "cgroup.procs", *folder.rglob("*/cgroup.procs")):
        with contextlib.suppress(FileNotFoundError):
            for pid in tasks.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


def _version_1(mounts: str) -> dict[str, Path]:
    """The wanted controllers' trees; empty when a needed one is missing."""
    found = {}
    for line in mounts.splitlines():
        _, folder, kind, options, *_ = line.split(" ")
        if kind == "cgroup":
            for controller in set(options.split(",")) & set(_V1_WANTED):
                found[controller] = Path(folder)
    return found if all(name in found for name in _V1_NEEDED) else {}


def _version_2(mounts: str) -> dict[str, Path]:
    """The one tree, at its root: cgroups made there outlive the agent's own unit, as an engine's do."""
    for line in mounts.splitlines():
        _, folder, kind, *_ = line.split(" ")
        controllers = Path(folder, "cgroup.controllers")
        if kind == "cgroup2" and controllers.exists() and set(controllers.read_text().split()) >= _V2_NEEDED:
            return {"": Path(folder)}
    return {}


def _all_trees(mounts: str) -> set[Path]:
    """The roots of all trees, of both versions, that this process may write to."""
    fields = [line.split(" ") for line in mounts.splitlines()]
    found = {Path(folder) for _, folder, kind, *_ in fields if kind in {"cgroup", "cgroup2"}}
    return {folder for folder in found if os.access(folder, os.W_OK)}


def _delegate(base: Path) -> None:
    """Version 2: hands the controllers down from the root of the tree to `base`, whose children get
    limits."""
    for folder in (base.parent.parent, base.parent, base):
        offered = set((folder / "cgroup.controllers").read_text().split())
        for controller in sorted(offered & {"memory", "pids", "cpu"}):
            _write(folder / "cgroup.subtree_control", f"+{controller}")


def _settings(controller: str, limits: Limits) -> dict[str, str]:
    """File -> value; later files may depend on earlier ones."""
    quota = None if limits.cpu is None else str(max(1_000, int(limits.cpu * _PERIOD_US)))
    memory = None if limits.memory is None else str(limits.memory)
    pids = {} if limits.pids is None else {"pids.max": str(limits.pids)}
    match controller:
        case "memory":
            # With swap counted the second holds; without, the kernel does not have the file and `_write`
            # skips it.
            return {} if memory is None else {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory}
        case "pids":
            return pids
        case "cpu":
            period = {"cpu.cfs_period_us": str(_PERIOD_US)}
            return {} if quota is None else {**period, "cpu.cfs_quota_us": quota}
        case _:
            v2 = {} if memory is None else {"memory.max": memory, "memory.swap.max": "0"}
            cpu = {} if quota is None else {"cpu.max": f"{quota} {_PERIOD_US}"}
            return {**v2, **pids, **cpu}


_OPTIONAL: Final = ("memory.memsw.limit_in_bytes", "memory.swap.max", "cpu.max", "cpu.weight")


def _write(file: Path, value: str) -> None:
    """Writes a control file. Those of swap accounting and of an absent cpu controller may be missing."""
    if file.name in _OPTIONAL and not file.exists():
        return
    file.write_text(value)


def of_process(pid: int) -> tuple[Path, ...]:
    """The cgroup folders of a container's pid 1, as the host sees them."""
    folders = []
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, inside = line.split(":", 2)
        for controller in controllers.split(","):
            if controller in _WATCHED:
                folder = Path("/sys/fs/cgroup", controller, inside.removeprefix("/"))
                if folder.is_dir() and inside != "/":
                    folders.append(folder)
    return tuple(folders)
