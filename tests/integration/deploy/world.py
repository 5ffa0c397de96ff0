"""Both images, built on a base made on this machine, and containers that are gone with the test."""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.models.networks import Network

from tests.integration.deploy.units import FOLDER, capabilities, directives, possible, seccomp_profile

REPOSITORY = FOLDER.parents[1]
BASE_PACKAGES = "python3,python3-venv,git,iproute2,iptables,busybox-static"
"""What a slim image of Python has, and what the agent needs: so that the build needs no network."""
PYTHON = "3.11"
"""Debian bookworm's."""


def wheels(folder: Path) -> Path:
    """All wheels that both images need, for the base's Python, from the host's own package index."""
    own = folder / "own"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "wheel", "--no-deps", f"--wheel-dir={own}", str(REPOSITORY)])
    (wheel,) = own.glob("headrace-*.whl")
    glibc = ("2_17", "2_24", "2_26", "2_27", "2_28", "2_34")
    machine = os.uname().machine
    platforms = [f"manylinux{each}_{machine}" for each in (*(f"_{each}" for each in glibc), "2014", "1")]
    target = [f"--platform={each}" for each in platforms]
    target += [f"--abi={each}" for each in (f"cp{PYTHON.replace('.', '')}", "abi3", "none")]
    target += ["--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}"]
    _run([*pip, "download", f"--dest={folder / 'all'}", *target, f"{wheel}[cli,coordinator,agent]"])
    return folder / "all"


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass
class Images:
    """The two images, and every layer that their build made."""

    client: docker.DockerClient
    base: str
    coordinator: str = ""
    agent: str = ""
    made: list[str] = field(default_factory=list)

    def build(self, kind: str, wheelhouse: Path) -> str:
        """Builds one Dockerfile without any network; returns the image's id."""
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            for wheel in sorted(wheelhouse.glob("*.whl")):
                tar.add(wheel, wheel.name)
            tar.add(REPOSITORY / "deploy/docker" / f"{kind}.Dockerfile", "Dockerfile")
        context.seek(0)
        lines = self.client.api.build(
            fileobj=context,
            custom_context=True,
            rm=True,
            forcerm=True,
            decode=True,
            network_mode="none",
            buildargs={"BASE": self.base, "PIP_OPTIONS": "--no-index", "VERSION": "0.0.0-test"},
        )
        said = ""
        for line in lines:
            assert "error" not in line, said[-3000:] + line["error"]
            said += line.get("stream", "")
        self.made += re.findall(r"^ ---> ([0-9a-f]{12})$", said, re.MULTILINE)
        return str(re.findall(r"^Successfully built ([0-9a-f]{12})$", said, re.MULTILINE)[-1])

    def remove(self) -> None:
        """Removes what was built, the newest first; the base stays."""
        keep = self.client.images.get(self.base).id
        for each in reversed(self.made):
            with contextlib.suppress(ImageNotFound, APIError):  # an older layer goes with the one above it
                if self.client.images.get(each).id != keep:
                    self.client.images.remove(each, noprune=False)


@dataclass
class Fleet:
    """A network and a volume of the test's own, and the containers in them."""

    client: docker.DockerClient
    images: Images
    folder: Path
    name: str = field(default_factory=lambda: f"hr-deploy-{secrets.token_hex(4)}")
    subnet: str = field(default_factory=lambda: f"10.223.{secrets.randbelow(250)}")
    containers: list[Container] = field(default_factory=list)
    networks: list[Network] = field(default_factory=list)
    volumes: set[str] = field(default_factory=set)

    @property
    def address(self) -> str:
        """The coordinator's."""
        return f"{self.subnet}.2"

    def open(self) -> None:
        """Makes network and volume."""
        pool = docker.types.IPAMPool(subnet=f"{self.subnet}.0/24", gateway=f"{self.subnet}.1")
        ipam = docker.types.IPAMConfig(pool_configs=[pool])
        self.networks.append(self.client.networks.create(self.name, driver="bridge", ipam=ipam))
        self.client.volumes.create(self.name)

    def coordinator(self, **environment: str) -> Container:
        """The coordinator's container, confined as its systemd unit says; not started."""
        return self._make(
            self.images.coordinator,
            "coordinator",
            environment,
            address=self.address,
            binds=[f"{self.name}:/var/lib/headrace/coordinator"],
            read_only=True,
            tmpfs={"/tmp": "mode=1777"},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges", f"seccomp={seccomp_profile('headrace-coordinator.service')}"],
        )

    def agent(self, token: Path, **environment: str) -> Container:
        """The agent's container, with the capabilities and the system calls of its systemd unit; not started."""
        unit = "headrace-agent.service"
        assert directives(unit)["NoNewPrivileges"] == ["yes"]
        return self._make(
            self.images.agent,
            "agent",
            environment | {"HEADRACE_TOKEN_FILE": "/run/headrace-token"},
            binds=[f"{token}:/run/headrace-token:ro"],
            all_of_proc=True,  # `systempaths=unconfined`: a sandbox may mount no /proc that shows more than ours
            init=True,
            cap_drop=["ALL"],
            cap_add=sorted(capabilities(unit) & possible()),
            security_opt=["no-new-privileges", "apparmor=unconfined", f"seccomp={seccomp_profile(unit)}"],
        )

    def left(self) -> list[str]:
        """What the engine still knows of this fleet."""
        ours: dict[str, Any] = {"name": self.name}
        containers = [str(each.name) for each in self.client.containers.list(all=True, filters=ours)]
        networks = [str(each.name) for each in self.client.networks.list(filters=ours)]
        volumes = {str(each.name) for each in self.client.volumes.list()}
        return [*containers, *networks, *sorted(volumes & self.volumes)]

    def close(self) -> None:
        """Removes everything."""
        for each in reversed(self.containers):
            with contextlib.suppress(NotFound):
                each.reload()
                self.volumes |= {mount["Name"] for mount in each.attrs["Mounts"] if mount["Type"] == "volume"}
                each.remove(force=True, v=True)
        for network in self.networks:
            network.remove()
            with contextlib.suppress(NotFound):
                self.client.volumes.get(self.name).remove()

    def _make(
        self, image: str, kind: str, environment: dict[str, str], *, address: str | None = None, **host: Any
    ) -> Container:
        paths: dict[str, list[str]] = {"MaskedPaths": [], "ReadonlyPaths": []} if host.pop("all_of_proc", False) else {}
        settings = self.client.api.create_host_config(network_mode="none", **host) | paths
        name = f"{self.name}-{kind}-{len(self.containers)}"
        created = self.client.api.create_container(image, name=name, environment=environment, host_config=settings)
        self.containers.append(self.client.containers.get(created["Id"]))
        self.client.networks.get("none").disconnect(self.containers[-1])
        self.networks[0].connect(self.containers[-1], ipv4_address=address)
        return self.containers[-1]


@contextlib.contextmanager
def fleet(images: Images, folder: Path) -> Iterator[Fleet]:
    """An empty fleet; gone with the block."""
    found = Fleet(images.client, images, folder)
    try:
        found.open()
        yield found
    finally:
        found.close()
    assert found.left() == []
