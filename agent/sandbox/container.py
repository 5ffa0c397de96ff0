"""The container of a docker job, as the Engine API's JSON. Pure: a request and an image's facts in, the
body out.

An image is hostile too: its ENV, ENTRYPOINT, HEALTHCHECK, VOLUME and USER decide nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.holding import FIRST_TO_GO
from agent.sandbox import entry
from agent.sandbox.protocol import Bind, Limits, SandboxRequest

LABEL_AGENT: Final = "headrace.agent"
LABEL_ATTEMPT: Final = "headrace.attempt"
TRUSTED_CAPABILITIES: Final = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETUID", "SETGID", "KILL")
"""What root in an image needs to install packages and unpack archives; an untrusted job has none."""
TMPFS: Final = f"rw,nosuid,nodev,size={2 << 30}"
"""In the place of an image's volume."""
_NO_RESOLVER: Final = "192.0.2.53"
_SHARED_MEMORY: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Image:
    """What is known of an image that is here."""

    digest: str
    """Of its configuration: `sha256:…`, which names exactly these bytes."""
    env: Mapping[str, str]
    volumes: tuple[str, ...]

    @classmethod
    def read(cls, inspected: Mapping[str, Any]) -> Image:
        """From the engine's answer; whatever an image leaves out is empty."""
        config = inspected.get("Config") or {}
        pairs = (pair.partition("=") for pair in config.get("Env") or ())
        return cls(
            digest=inspected["Id"],
            env={name: value for name, _, value in pairs if name},
            volumes=tuple(sorted(config.get("Volumes") or ())),
        )


@dataclass(frozen=True, slots=True)
class Container:
    """What one container is made of, beyond the request."""

    image: Image
    limits: Limits
    seccomp: str
    """The profile's JSON."""
    network: str
    """The engine's name of the job's network, or `none`."""
    user: str
    """uid:gid inside."""
    busybox: Path | None
    runtime: str
    """The engine's name of an OCI runtime; empty: its default."""
    parent: str = ""
    """The group that all jobs of the agent are in, as the engine names it; empty: the engine's own."""
    inward: bool = False
    """The network leads to the job and its services alone."""


def labels(agent: str, attempt: int) -> dict[str, str]:
    """On everything that is made in the engine."""
    return {LABEL_AGENT: agent, LABEL_ATTEMPT: str(attempt)}


def body(request: SandboxRequest, container: Container) -> dict[str, Any]:
    """The body of `POST /containers/create`."""
    command = list(entry.argv(container.busybox))
    return {
        "Image": container.image.digest,
        "Entrypoint": command[:1],
        "Cmd": command[1:],
        # A name without `=` takes the image's variable away from the control shell: BASH_ENV, LD_PRELOAD.
        "Env": [*sorted(name for name in container.image.env if name != "PATH"), f"PATH={entry.PATH}"],
        "User": container.user,
        "WorkingDir": "/",
        "Hostname": "headrace",
        "Labels": labels(request.agent, request.attempt),
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGKILL",
        "Tty": False,
        "OpenStdin": False,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "HostConfig": {
            **walls(request, container),
            "Mounts": [_mount(bind) for bind in _binds(request, container.busybox)],
            # Over every VOLUME of the image: the engine would else make a volume that outlives the container.
            "Tmpfs": dict.fromkeys(_volumes(container.image), TMPFS),
            "LogConfig": {"Type": "none"},
        },
    }


def emptying(image: str, folder: Path, names: Sequence[str], *, busybox: Path | None, seccomp: str) -> dict[str, Any]:
    """The body for a container that removes the folders `names` of `folder` as root, and has nothing else to do."""
    shell = () if busybox is None else (Bind(busybox, entry.BUSYBOX),)
    command = [*(() if busybox is None else (entry.BUSYBOX,)), "rm"]
    return {
        "Image": image,
        "Entrypoint": command[:1],
        "Cmd": [*command[1:], "-rf", *(f"{entry.WORKSPACE}/{name}" for name in names)],
        "Env": [f"PATH={entry.PATH}"],
        "User": "0:0",
        "WorkingDir": "/",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": "none",
            "Mounts": [_mount(bind) for bind in (Bind(folder, entry.WORKSPACE, writable=True), *shell)],
            "LogConfig": {"Type": "none"},
            "CapDrop": ["ALL"],
            "CapAdd": ["DAC_OVERRIDE", "FOWNER"],
            "SecurityOpt": ["no-new-privileges", f"seccomp={seccomp}"],
        },
    }


def walls(request: SandboxRequest, container: Container) -> dict[str, Any]:
    """What holds a container in, the job's and its services' alike: the common part of the HostConfig."""
    limits = container.limits
    host: dict[str, Any] = {
        "NetworkMode": container.network,
        "Init": False,
        "RestartPolicy": {"Name": "no"},
        "CapDrop": ["ALL"],
        "CapAdd": list(TRUSTED_CAPABILITIES) if request.trusted else [],
        "SecurityOpt": ["no-new-privileges", f"seccomp={container.seccomp}"],
        "Privileged": False,
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "ShmSize": _SHARED_MEMORY,
        "OomScoreAdj": FIRST_TO_GO,
        # 1 byte keeps the host's crash handler from ever being run on a job's behalf. Open files: the
        # engine's own default, because an engine without CAP_SYS_RESOURCE refuses to start what asks for
        # more.
        "Ulimits": [{"Name": "core", "Soft": 1, "Hard": 1}],
    }
    if container.inward:
        # Older engines ask the host's own resolver on behalf of a network without a way out: a leak. Nobody is there,
        # and they answer nothing then: without the options each unknown name takes 20 s.
        host |= {"Dns": [_NO_RESOLVER], "DnsOptions": ["timeout:1", "attempts:2"]}
    if container.runtime:
        host["Runtime"] = container.runtime
    if container.parent:
        host["CgroupParent"] = container.parent
    if limits.memory is not None:
        host |= {"Memory": limits.memory, "MemorySwap": limits.memory}
    if limits.cpu is not None:
        host["NanoCpus"] = int(limits.cpu * 1_000_000_000)
    if limits.pids is not None:
        host["PidsLimit"] = limits.pids
    return host


def _binds(request: SandboxRequest, busybox: Path | None) -> Sequence[Bind]:
    shell = () if busybox is None else (Bind(busybox, entry.BUSYBOX),)
    return (
        Bind(request.folder / "io", entry.CONTROL),
        Bind(request.workspace, entry.WORKSPACE, writable=True),
        *shell,
        *request.binds,
    )


def _mount(bind: Bind) -> dict[str, Any]:
    """As a mount, not a `-v`: a source that is missing is an error, not a new folder of root's."""
    return {"Type": "bind", "Source": str(bind.source), "Target": bind.target, "ReadOnly": not bind.writable}


def _volumes(image: Image) -> list[str]:
    """The image's volumes, but for our own places: a volume there must not hide the job's files."""
    ours = (entry.CONTROL, entry.WORKSPACE, str(Path(entry.BUSYBOX).parent))
    clean = {"/" + path.strip("/") for path in image.volumes}
    return sorted(path for path in clean if path != "/" and not path.startswith(ours))
