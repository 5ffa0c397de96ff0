"""Jobs in containers, through the Engine API: called to create, start, look, connect and remove, never to
exec or attach, and never for a job's output.

The calls block and run in threads. Everything made bears the agent's id and the attempt as labels, by which
`remove` and `sweep` find it, whoever made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import docker
from docker.errors import DockerException, ImageNotFound
from docker.utils import parse_repository_tag
from requests.exceptions import RequestException

from agent.problems import Cause, JobProblem
from agent.sandbox import container, entry, names, seccomp
from agent.sandbox.cgroups import Cgroups, of_process
from agent.sandbox.commands import CommandFailedError
from agent.sandbox.container import LABEL_AGENT, LABEL_ATTEMPT, Container, Image
from agent.sandbox.engine_group import EngineGroup
from agent.sandbox.firewall import Firewall, Rules
from agent.sandbox.limits import NoRoomError, granted, parted
from agent.sandbox.protocol import (
    Ability,
    Attach,
    Limits,
    NotRemovedError,
    Prepared,
    SandboxRequest,
)
from agent.sandbox.sentences import not_started, one_line, unavailable
from headrace.pipeline.plan import Network, SandboxKind

Answer = TypeVar("Answer")

DEFAULT_URL: Final = "unix:///var/run/docker.sock"
_OLDEST_API: Final = (1, 41)
_TIMEOUT_S: Final = 60
_PULL_TIMEOUT_S: Final = 1800
_EMPTYING_S: Final = 300


class EngineError(Exception):
    """The engine did not do what it was asked to. Its own sentence."""


class Docker:
    """The docker sandbox. The connection is made when it is first needed and closed by `close`."""

    kind = SandboxKind.DOCKER

    def __init__(
        self,
        *,
        agent: str,
        slot: Limits,
        env: Mapping[str, str],
        firewall: Firewall | None,
        cgroups: Cgroups | None = None,
        resolvers: tuple[str, ...] = (),
        busybox: Path | None = None,
        own_network: bool = False,
        runtime: str = "",
        url: str = DEFAULT_URL,
        registry_auth: Mapping[str, str] | None = None,
        euid: int | None = None,
    ) -> None:
        """`env`: settings given to every step, under the image's own. `firewall`: a root agent's; without
        it a job gets a network only as the user's own code (`own_network`).

        `cgroups`: a root agent's, whose group takes the containers too.
        `url`: the engine's address. `runtime`: another OCI runtime (`runsc`). `euid`: the agent's own uid.
        """
        self._agent = agent
        self._slot = slot
        self._env = env
        self._firewall = firewall
        self._group = EngineGroup(cgroups)
        self._resolvers = resolvers
        self._busybox = busybox
        self._own_network = own_network
        self._runtime = runtime
        self._url = url
        self._registry_auth = dict(registry_auth) if registry_auth else None
        self._euid = os.geteuid() if euid is None else euid
        self._client: docker.APIClient | None = None
        self._connecting = threading.Lock()
        self._pulling = asyncio.Lock()

    async def ability(self) -> Ability:
        """Asks the engine for its version and what it can limit."""
        try:
            seccomp.profile(platform.machine())
            version = await self._call(lambda engine: engine.version())
            facts = await self._call(lambda engine: engine.info())
        except seccomp.UnknownMachineError as error:
            return self._cannot(str(error))
        except (DockerException, RequestException) as error:
            return self._cannot(f"no Docker engine answers: {one_line(error)}")
        api = numbers(version["ApiVersion"])
        if api < _OLDEST_API:
            wanted = ".".join(map(str, _OLDEST_API))
            return self._cannot(f"the Docker engine is too old: its API is {version['ApiVersion']}, {wanted} is needed")
        if self._runtime and self._runtime not in facts.get("Runtimes", {}):
            mend = "install it there, or change docker_runtime"
            return self._cannot(f"the Docker engine knows no runtime {self._runtime}: {mend}")
        await self._group.learn(facts, self._slot)
        full = self._own_network or (self._firewall is not None and await self._firewall.try_out())
        networks = frozenset({Network.NONE, Network.SERVICES, Network.FULL} if full else {Network.NONE})
        return Ability(self.kind, networks, hard_limits=bool(facts.get("MemoryLimit") and facts.get("PidsLimit")))

    def _cannot(self, why: str) -> Ability:
        return Ability(self.kind, frozenset(), hard_limits=False, why_not=why)

    async def prepare(self, request: SandboxRequest) -> Prepared:
        """Image, network and container; returns with the container started and its control shell waiting."""
        image = await self.resolve(request.image)
        try:
            if not request.services:
                await self.open_network(request)
            limits, _ = self.limits(request)
            shown = await self.started(container.body(request, self.place(request, image, limits)))
        except EngineError as error:
            raise not_started(request.image, error) from error
        pid = int(shown["State"]["Pid"])
        if pid == 0:
            code = shown["State"]["ExitCode"]
            sentence = f"image {request.image} does not run here: its control shell ended at once with code {code}"
            raise JobProblem(Cause.ERRORED, sentence)
        env = {"PATH": entry.PATH, **self._env, **image.env}
        env.setdefault("HOME", "/root" if self._user(request) == "0:0" else entry.WORKSPACE)
        return Prepared(Attach(pid, shown["Id"]), env=env, cgroups=of_process(pid), image=image.digest)

    async def resolve(self, name: str) -> Image:
        """The image, pulled if it is not here. Raises `JobProblem`: it cannot be had, or no engine answers."""
        async with self._pulling:
            try:
                return await self._inspect(name)
            except ImageNotFound:
                await self._pull(name)
            except (DockerException, RequestException) as error:
                raise unavailable(name, error) from error
            try:
                return await self._inspect(name)
            except (DockerException, RequestException) as error:
                raise unavailable(name, error) from error

    async def _inspect(self, name: str) -> Image:
        return Image.read(await self._call(lambda engine: _inspected(engine, name)))

    async def _pull(self, name: str) -> None:
        repository, tag = parse_repository_tag(name)

        def pull(engine: docker.APIClient) -> None:
            lines = engine.pull(
                repository, tag=tag or "latest", stream=True, decode=True, auth_config=self._registry_auth
            )
            for line in lines:
                if "error" in line:
                    raise DockerException(line["error"])

        try:
            async with asyncio.timeout(_PULL_TIMEOUT_S):
                await asyncio.to_thread(self._with_client, pull)  # may be given up: an image is nobody's rest
        except (DockerException, RequestException, TimeoutError) as error:
            raise unavailable(name, error) from error

    def limits(self, request: SandboxRequest) -> tuple[Limits, Limits]:
        """The job's, and each of its services'. Raises `JobProblem`."""
        if not request.services:
            return granted(request.limits, self._slot), Limits()
        try:
            return parted(request.limits, self._slot, len(request.services))
        except NoRoomError as error:
            raise JobProblem(Cause.REFUSED, str(error)) from error

    def place(self, request: SandboxRequest, image: Image, limits: Limits) -> Container:
        """What a container of the attempt is made of, the job's and its services'. Raises `JobProblem`."""
        return Container(
            image=image,
            limits=limits,
            seccomp=seccomp.profile(platform.machine()),
            network=self._network(request),
            user=self._user(request),
            busybox=self._busybox,
            runtime=self._runtime,
            parent=self._group.open(request.attempt),
            inward=bool(request.services) and request.network is not Network.FULL,
        )

    async def started(self, body: dict[str, Any]) -> dict[str, Any]:
        """Makes a container and starts it; returns what the engine shows of it. Raises `EngineError`."""
        created = await self.ask(lambda engine: _create(engine, body))
        await self.ask(lambda engine: engine.start(created["Id"]))
        return await self.ask(lambda engine: engine.inspect_container(created["Id"]))

    def _network(self, request: SandboxRequest) -> str:
        """The engine's name of the job's network."""
        if request.services:
            return names.namespace(self._agent, request.attempt)
        if request.network is not Network.FULL:
            return "none"
        return "bridge" if self._firewall is None else names.namespace(self._agent, request.attempt)

    async def open_network(self, request: SandboxRequest) -> None:
        """Makes the attempt's network, if it has one. The rules stand before anything is connected to it."""
        network = self._network(request)
        if network == "none":
            return
        if self._firewall is None and not (request.own_code and self._own_network):
            mend = "leave `services` out" if request.services else "say `network: none`"
            sentence = f"this agent is not root and cannot filter a container's network: {mend}"
            raise JobProblem(Cause.REFUSED, sentence)
        if network == "bridge":
            return
        interface = names.interface(self._agent, request.attempt)
        try:
            if self._firewall is not None:
                await self._firewall.close(request.attempt, Rules(interface, self._resolvers))
            await self._call(
                lambda engine: engine.create_network(
                    network,
                    driver="bridge",
                    options={"com.docker.network.bridge.name": interface},
                    labels=container.labels(self._agent, request.attempt),
                    enable_ipv6=False,
                    internal=request.network is not Network.FULL,
                )
            )
        except (DockerException, RequestException, CommandFailedError) as error:
            raise JobProblem(Cause.ERRORED, f"the job's network could not be made: {one_line(error)}") from error

    def _user(self, request: SandboxRequest) -> str:
        """Root of the container, as images expect; an untrusted job of an agent that is not root has its uid,
        because root without capabilities could not write the agent's own files.
        """
        return "0:0" if self._euid == 0 or request.trusted else f"{self._euid}:{os.getegid()}"

    async def remove(self, attempt: int) -> None:
        """Removes the attempt's containers, with their volumes, then its network, then the rules. What runs is killed:
        no other way has an agent that is not root, which may signal nothing in a container.

        Raises `NotRemovedError`; it may be tried again.
        """
        try:
            removed = await self._remove_labelled(f"{LABEL_ATTEMPT}={attempt}")
            await self._group.close(attempt, removed)
            if self._firewall is not None:
                await self._firewall.open(attempt)
        except (DockerException, RequestException, CommandFailedError) as error:
            raise NotRemovedError(f"attempt {attempt} is not removed from the engine: {one_line(error)}") from error

    async def sweep(self, keep: frozenset[int]) -> None:
        """Removes the containers, networks and rules of attempts that are not in `keep`. Raises `NotRemovedError`."""
        try:
            left = await self._call(self._attempts)
        except (DockerException, RequestException) as error:
            raise NotRemovedError(f"the engine does not say what it holds: {one_line(error)}") from error
        if self._firewall is not None:
            left |= await self._firewall.attempts()
        for attempt in sorted(left - keep):
            await self.remove(attempt)
        self._group.tidy()

    async def empty(self, attempt: int, folder: Path, names: Sequence[str], image: str) -> None:
        """Has a container of root remove what a job left. Raises `NotRemovedError`."""
        profile = seccomp.profile(platform.machine())
        made = container.emptying(image, folder, names, busybox=self._busybox, seccomp=profile)
        made["Labels"] = container.labels(self._agent, attempt)
        if self._runtime:  # the image is as hostile as the job was
            made["HostConfig"]["Runtime"] = self._runtime

        def work(engine: docker.APIClient) -> int:
            found = _create(engine, made)["Id"]
            try:
                engine.start(found)
                return int(engine.wait(found, timeout=_EMPTYING_S)["StatusCode"])
            finally:
                engine.remove_container(found, force=True, v=True)

        try:
            code = await self._call(work)
        except (DockerException, RequestException) as error:
            raise NotRemovedError(f"{folder} is not emptied by the engine: {one_line(error)}") from error
        if code != 0:
            raise NotRemovedError(f"{folder} is not emptied: rm in a container ended with code {code}")

    async def close(self) -> None:
        """Closes the connection to the engine."""
        if self._client is not None:
            await asyncio.to_thread(self._client.close)
            self._client = None

    def _filter(self, *labels: str) -> list[str]:
        return [f"{LABEL_AGENT}={self._agent}", *labels]

    def _attempts(self, engine: docker.APIClient) -> frozenset[int]:
        label = {"label": self._filter(LABEL_ATTEMPT)}
        found = [*engine.containers(all=True, filters=label), *engine.networks(filters=label)]
        return frozenset(int(thing["Labels"][LABEL_ATTEMPT]) for thing in found)

    async def _remove_labelled(self, label: str) -> list[str]:
        """Returns the ids of the containers."""

        def remove(engine: docker.APIClient) -> list[str]:
            filters = {"label": self._filter(label)}
            containers = engine.containers(all=True, filters=filters)
            for found in containers:
                with contextlib.suppress(docker.errors.NotFound):
                    engine.remove_container(found["Id"], force=True, v=True)
            for found in engine.networks(filters=filters):
                with contextlib.suppress(docker.errors.NotFound):
                    engine.remove_network(found["Id"])
            return [found["Id"] for found in containers]

        return await self._call(remove)

    async def inspected(self, *labels: str) -> list[dict[str, Any]]:
        """What the engine shows of this agent's containers with these labels. Raises `EngineError`."""

        def look(engine: docker.APIClient) -> list[dict[str, Any]]:
            found = engine.containers(all=True, filters={"label": self._filter(*labels)})
            return [engine.inspect_container(each["Id"]) for each in found]

        return await self.ask(look)

    async def ask(self, work: Callable[[docker.APIClient], Answer]) -> Answer:
        """One call for whoever does not know the engine. Raises `EngineError`."""
        try:
            return await self._call(work)
        except (DockerException, RequestException) as error:
            raise EngineError(one_line(error)) from error

    async def _call(self, work: Callable[[docker.APIClient], Answer]) -> Answer:
        """One call, to its end: what a canceled one was about to make would else appear after its removal."""
        running = asyncio.ensure_future(asyncio.to_thread(self._with_client, work))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise

    def _with_client(self, work: Callable[[docker.APIClient], Answer]) -> Answer:
        with self._connecting:
            if self._client is None:
                _knock(self._url)
                self._client = docker.APIClient(base_url=self._url, version="auto", timeout=_TIMEOUT_S)
        return work(self._client)


def _knock(url: str) -> None:
    """Raises `DockerException` when nobody listens at a local address: the client would leave its socket
    open."""
    path = url.removeprefix("unix://")
    if path == url:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            raise DockerException(f"{path}: {error.strerror}") from error


def numbers(version: str) -> tuple[int, ...]:
    """Of a version, to compare."""
    return tuple(int(part) for part in version.split("."))


def _create(engine: docker.APIClient, body: dict[str, Any]) -> dict[str, Any]:
    # The client's stubs leave these two without types.
    created: dict[str, Any] = engine.create_container_from_config(body)  # type: ignore[no-untyped-call]
    return created


def _inspected(engine: docker.APIClient, name: str) -> dict[str, Any]:
    inspected: dict[str, Any] = engine.inspect_image(name)  # type: ignore[no-untyped-call]
    return inspected
