"""A Docker engine of the test's own, that may be killed: the one of the session belongs to all tests.

It has no bridge and no firewall rules, so that it is alone in nothing but its folder: jobs on it have no network.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import docker

from tests.harness import images
from tests.harness.docker_engine import answers
from tests.harness.leftovers import processes

_START_S = 60.0
_CONTAINERD = """
version = 2
root = "{folder}/containerd"
state = "{folder}/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{folder}/run/c.sock"
"""


class Engine:
    """dockerd and a containerd beside it, as Debian has them. What runs outlives a kill of dockerd, and ends with its
    next start, as with any that has no `live-restore`. What is in memory after a boot is in `run`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/d.sock"
        self._daemon: subprocess.Popen[bytes] | None = None
        self._containerd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and containerd where that does not run; waits until it answers."""
        (self.folder / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
        for stale in ("d.sock", "pid"):
            (self.folder / stale).unlink(missing_ok=True)
        if self._containerd is None or self._containerd.poll() is not None:
            settings = self.folder / "containerd.toml"
            settings.write_text(_CONTAINERD.format(folder=self.folder))
            self._containerd = self._launch("containerd", "--config", str(settings))
        self._daemon = self._launch(
            "dockerd",
            f"--host={self.url}",
            f"--containerd={self.folder}/run/c.sock",
            f"--data-root={self.folder}/data",
            f"--exec-root={self.folder}/run/exec",
            f"--pidfile={self.folder}/pid",
            "--bridge=none",
            "--iptables=false",
        )
        end = time.monotonic() + _START_S
        while not answers(self.url):
            assert self._daemon.poll() is None, (self.folder / "log").read_text()[-2000:]
            assert time.monotonic() < end, "dockerd does not answer"
            time.sleep(0.05)  # there is no event to wait for: the socket appears when it appears

    def kill(self) -> None:
        """SIGKILL to dockerd alone: containers run on."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()

    def power_off(self) -> None:
        """SIGKILL to all of it, and what is in memory is gone."""
        self.kill()
        kill_all(str(self.folder))
        assert self._containerd is not None
        self._containerd.wait()
        unmount(self.folder)
        shutil.rmtree(self.folder / "run")

    def _launch(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def containers(self, agent: str) -> list[str]:
        """Those of an agent, by its label, ended ones too."""
        with contextlib.closing(docker.APIClient(base_url=self.url, version="auto")) as client:
            found = client.containers(all=True, filters={"label": f"headrace.agent={agent}"})
        return [str(each["Id"]) for each in found]

    def end(self) -> None:
        """Whatever it takes, and nothing of it is left."""
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._daemon.wait(20)
        kill_all(str(self.folder))
        if self._containerd is not None:
            self._containerd.wait()
        unmount(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def own_engine(folder: Path) -> Iterator[Engine]:
    """An engine that runs, with the image `images.BUSYBOX`; `folder` must have a short path, for its sockets."""
    made = Engine(folder)
    try:
        made.start()
        images.busybox(made.url)
        yield made
    finally:
        made.end()


def kill_all(*marks: str) -> None:
    """SIGKILL to all processes that a mark names, and to those that they began meanwhile; waits for their end."""
    end = time.monotonic() + 20
    while found := [pid for pid, _ in processes(marks)]:
        assert time.monotonic() < end, f"they do not die: {processes(marks)}"
        handles = []
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                handles.append(os.pidfd_open(pid))
        for handle in handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        for handle in handles:
            select.select([handle], [], [], 10)
        for handle in handles:
            os.close(handle)


def unmount(folder: Path) -> None:
    """Takes away all that is mounted below a folder, the last first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for point in reversed([line.split()[4] for line in lines if line.split()[4].startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", point], check=False)
