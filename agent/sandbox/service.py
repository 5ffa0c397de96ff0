"""The container of a service, as the Engine API's JSON, and what the engine says of it. Pure.

The walls are the job's own. What differs: the image's entrypoint, command, variables and user are what the service
is, and the engine keeps the last of its output and runs its ready command.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from agent.sandbox import container
from agent.sandbox.container import Container
from agent.sandbox.protocol import Limits, SandboxRequest, Service, ServiceState

LABEL_SERVICE: Final = "headrace.service"
LOG_TAIL: Final = 64 << 10
"""Bytes of a service's output that are shown when it fails."""
_LOG: Final = {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}}
"""At least the last 1 MiB of JSON lines; never more than twice that."""
_START_INTERVAL: Final = (1, 44)
"""The engine's API from which on a health check may be frequent at first and rare later."""
_SECOND: Final = 1_000_000_000
_PROBE_S: Final = 10
_SAID: Final = 300


def body(request: SandboxRequest, service: Service, container_: Container, *, api: tuple[int, ...]) -> dict[str, Any]:
    """The body of `POST /containers/create`; `api`: the engine's version."""
    volumes = {"/" + path.strip("/") for path in container_.image.volumes} - {"/"}
    return {
        "Image": container_.image.digest,
        "Env": [f"{name}={value}" for name, value in sorted(service.env.items())],
        "Hostname": service.name,
        "Labels": {**container.labels(request.agent, request.attempt), LABEL_SERVICE: service.name},
        "Healthcheck": _healthcheck(service, api),
        "Tty": False,
        "OpenStdin": False,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "NetworkingConfig": {"EndpointsConfig": {container_.network: {"Aliases": [service.name]}}},
        "HostConfig": {
            **container.walls(request, container_),
            # The image made the volume's folder for a user of its own: here nobody knows for which.
            "Tmpfs": dict.fromkeys(sorted(volumes), f"{container.TMPFS},mode=1777"),
            "LogConfig": _LOG,
        },
    }


def _healthcheck(service: Service, api: tuple[int, ...]) -> dict[str, Any]:
    """The ready command as the engine's health check: so that no exec of ours is needed. Its first success counts."""
    if not service.ready:
        return {"Test": ["NONE"]}
    check: dict[str, Any] = {"Test": ["CMD", "sh", "-c", service.ready], "Timeout": _PROBE_S * _SECOND, "Retries": 1}
    if api < _START_INTERVAL:
        return {**check, "Interval": _SECOND}
    waiting = int((service.timeout_s + _PROBE_S) * _SECOND)
    return {**check, "StartPeriod": waiting, "StartInterval": _SECOND // 4, "Interval": 3600 * _SECOND}


def state(inspected: Mapping[str, Any]) -> ServiceState:
    """From the engine's answer."""
    now = inspected["State"]
    wanted = (inspected["Config"].get("Healthcheck") or {}).get("Test") or ["NONE"]
    health = now.get("Health") or {}
    log = health.get("Log") or [{}]
    said = " ".join(str(log[-1].get("Output") or "").split())[-_SAID:]
    running = bool(now["Running"])
    return ServiceState(
        running=running,
        ready=running and (wanted == ["NONE"] or health.get("Status") == "healthy"),
        exit_code=int(now["ExitCode"]),
        out_of_memory=bool(now.get("OOMKilled")),
        said=said,
        shell_missing=re.search(r'exec: "sh": executable file not found', said) is not None,
        limits=_limits(inspected["HostConfig"]),
    )


def _limits(host: Mapping[str, Any]) -> Limits:
    cpu = (host.get("NanoCpus") or 0) / _SECOND
    return Limits(cpu or None, host.get("Memory") or None, host.get("PidsLimit") or None)


def name_of(inspected: Mapping[str, Any]) -> str:
    """The service that a container is."""
    return str(inspected["Config"]["Labels"][LABEL_SERVICE])


def tail(log: bytes) -> bytes:
    """The last lines of a log, within bounds; a cut line is left out."""
    if len(log) <= LOG_TAIL:
        return log
    cut = log[-LOG_TAIL:]
    return cut.partition(b"\n")[2] or cut
