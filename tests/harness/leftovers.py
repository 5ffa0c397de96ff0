"""What a test left on the machine: found by the test's scratch folder and by the ids of the agents that lived there.

Nothing is compared with a picture of the whole machine, because other tests run beside this one. What cannot be
attributed is kept below the scratch folder (TMPDIR), where it must be gone as well.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import docker

from agent.sandbox import names

PATIENCE_S = 15.0
"""The kernel and the engine need a moment to take away what was ended."""


@dataclass
class Leftovers:
    """Looks for what is left of one test; `engine` is the address of the Docker engine that it used, or None."""

    scratch: Path
    engine: str | None = None
    own_children: frozenset[int] = frozenset()
    """Children that this process had before the test began."""
    volumes: frozenset[str] = frozenset()
    agents: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, scratch: Path) -> Leftovers:
        """To be called before the test."""
        return cls(scratch, own_children=frozenset(children(os.getpid())))

    def watch_engine(self, engine: str) -> None:
        """From now on containers, networks and volumes count too."""
        self.engine, self.volumes = engine, frozenset(_volumes(engine))

    def found(self) -> list[str]:
        """One line for each thing that does not go away."""
        end = time.monotonic() + PATIENCE_S
        while True:
            self.agents = sorted({*self.agents, *(file.read_text().strip() for file in _instances(self.scratch))})
            found = [*self._processes(), *self._kernel(), *self._folders(), *self._docker()]
            if not found or time.monotonic() > end:
                return found
            time.sleep(0.1)  # nobody is told when a stranger's process or mount goes

    def _marks(self) -> list[str]:
        return [str(self.scratch), *self.agents]

    def _processes(self) -> Iterator[str]:
        for pid, what in processes(self._marks()):
            yield f"process {pid}: {what}"
        for pid in children(os.getpid()) - self.own_children:
            with contextlib.suppress(OSError):
                command = _text(Path(f"/proc/{pid}/cmdline"))
                if "dockerd" not in command:  # the engine of the session
                    yield f"child process {pid}: {command or 'a zombie'}"

    def _kernel(self) -> Iterator[str]:
        """Mounts, cgroups, network namespaces and interfaces, firewall rules."""
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if any(mark in line for mark in self._marks()):
                yield f"mount {line.split()[4]}"
        for agent in self.agents:
            for pattern in (f"*/headrace/{agent}", f"headrace/{agent}"):
                yield from (f"cgroup {folder}" for folder in Path("/sys/fs/cgroup").glob(pattern))
            tag = names.agent_tag(agent)
            yield from (f"netns {file.name}" for file in Path("/run/netns").glob(f"headrace-{tag}-*"))
            yield from (f"interface {file.name}" for file in Path("/sys/class/net").glob(f"{names.PREFIX}{tag}*"))
        if self.agents and os.geteuid() == 0:
            yield from (f"firewall rule {line}" for line in _rules() if any(agent in line for agent in self.agents))

    def _folders(self) -> Iterator[str]:
        """Temporary files, and the folders that agents have outside their data directory."""
        temporary = self.scratch / "tmp"
        if temporary.is_dir():
            yield from (f"temporary file {file}" for file in temporary.iterdir())
        for agent in self.agents:
            places = (Path("/run/headrace", agent), *Path("/tmp").glob(f"headrace-*/{agent[:12]}"))
            yield from (f"folder {place}" for place in places if place.exists())
        for place in (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):
            for file in place.iterdir():
                if file.is_symlink() and str(self.scratch) in str(file.readlink()):
                    yield f"link {file}"

    def _docker(self) -> Iterator[str]:
        if self.engine is None:
            return
        with contextlib.closing(docker.APIClient(base_url=self.engine, version="auto")) as client:
            for agent in self.agents:
                label = {"label": f"headrace.agent={agent}"}
                yield from (f"container {each['Id'][:12]}" for each in client.containers(all=True, filters=label))
                yield from (f"network {each['Name']}" for each in client.networks(filters=label))
        yield from (f"volume {name}" for name in set(_volumes(self.engine)) - self.volumes)

    def clear(self) -> None:
        """Takes away what can be, so that one bad test is one bad test; then the scratch folder itself."""
        for _ in range(3):
            for pid, _ in processes(self._marks()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if os.geteuid() == 0:
            lines = Path("/proc/self/mountinfo").read_text().splitlines()
            for mount in reversed([line.split()[4] for line in lines if str(self.scratch) in line]):
                subprocess.run(["umount", "--lazy", mount], check=False)
        if self.engine is not None:
            with contextlib.closing(docker.APIClient(base_url=self.engine, version="auto")) as client:
                for agent in self.agents:
                    label = {"label": f"headrace.agent={agent}"}
                    for each in client.containers(all=True, filters=label):
                        client.remove_container(each["Id"], force=True, v=True)
                    for each in client.networks(filters=label):
                        client.remove_network(each["Id"])
        shutil.rmtree(self.scratch)


def processes(marks: Iterable[str]) -> list[tuple[int, str]]:
    """Living processes that a mark names: in command line, environment, working folder, cgroup or mounts."""
    wanted = tuple(marks)
    own = (os.getpid(), os.getppid())
    here, root = _link(Path("/proc/self/ns/mnt")), _root(_text(Path("/proc/self/mountinfo")))
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) in own:
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile, or is somebody else's
            command = _text(folder / "cmdline")
            if not command or "dockerd" in command.split(" ")[0]:
                continue
            seen = [command, _text(folder / "environ"), _link(folder / "cwd"), _text(folder / "cgroup")]
            # Whoever still has this machine's root has all that is mounted here, of every test: a sandbox that is
            # being made, say. It says nothing about whose it is.
            if _link(folder / "ns" / "mnt") != here and _root(mounts := _text(folder / "mountinfo")) != root:
                seen.append(mounts)
            if any(mark in text for mark in wanted for text in seen):
                found.append((int(folder.name), command))
    return found


def children(parent: int) -> set[int]:
    """The direct children of a process, zombies included."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    found.add(int(folder.name))
    return found


def _text(file: Path) -> str:
    return file.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()


def _root(mounts: str) -> str:
    """Which file system, and which folder of it, is at `/`."""
    fields = (line.split() for line in mounts.splitlines())
    return next((f"{each[2]} {each[3]}" for each in fields if each[4] == "/"), "")


def _link(file: Path) -> str:
    try:
        return str(file.readlink())
    except OSError:
        return ""


def _instances(scratch: Path) -> list[Path]:
    return [file for depth in ("*", "*/*", "*/*/*", "*/*/*/*") for file in scratch.glob(f"{depth}/instance")]


def _rules() -> Iterator[str]:
    for command in (["iptables"], ["iptables", "-t", "nat"], ["ip6tables"]):
        done = subprocess.run([*command, "--wait", "-S"], capture_output=True, text=True, check=False)
        yield from done.stdout.splitlines()


def _volumes(engine: str) -> list[str]:
    with contextlib.closing(docker.APIClient(base_url=engine, version="auto")) as client:
        listed = client.volumes(filters={"dangling": True})["Volumes"]
    return [each["Name"] for each in listed or []]
