"""Services in containers beside a docker job's own; docs/decisions/0014 has the reasons.

Network, walls and end are those of the job: `Docker` makes the one, and removes all that bears the attempt's label.
"""

from __future__ import annotations

from typing import Any

from agent.problems import Cause, JobProblem
from agent.sandbox import service
from agent.sandbox.container import LABEL_ATTEMPT
from agent.sandbox.docker import Docker, EngineError, numbers
from agent.sandbox.protocol import NotSeenError, SandboxRequest, Service, ServiceState


class DockerServices:
    """The services of one engine's jobs. Nothing is kept of them here: their labels lead to them."""

    def __init__(self, docker: Docker) -> None:
        self._docker = docker

    async def open_network(self, request: SandboxRequest) -> None:
        """Makes the network of the job and its services, with its rules. Raises `JobProblem`."""
        await self._docker.open_network(request)

    async def begin_service(self, request: SandboxRequest, wanted: Service) -> None:
        """Starts a service; it runs then, or has already ended. Raises `JobProblem`."""
        _, limits = self._docker.limits(request)
        try:
            image = await self._docker.resolve(wanted.image)
            place = self._docker.place(request, image, limits)
            version = await self._docker.ask(lambda engine: engine.api_version)
            await self._docker.started(service.body(request, wanted, place, api=numbers(version)))
        except JobProblem as problem:
            raise JobProblem(problem.cause, f"service {wanted.name}: {problem.sentence}") from problem
        except EngineError as error:
            raise JobProblem(Cause.SERVICE_FAILED, f"service {wanted.name} could not be started: {error}") from error

    async def services(self, attempt: int) -> dict[str, ServiceState]:
        """A look at the attempt's services, by name, whoever started them. Raises `NotSeenError`."""
        return {service.name_of(each): service.state(each) for each in await self._looked(attempt)}

    async def service_log(self, attempt: int, name: str) -> bytes:
        """The last of what a service wrote, 64 KiB at most. Raises `NotSeenError`."""
        for each in await self._looked(attempt):
            if service.name_of(each) == name:
                return service.tail(await self._read_log(each["Id"]))
        return b""

    async def _read_log(self, container: str) -> bytes:
        """All that the engine has of it: 2 MiB at most."""
        try:
            log: bytes = await self._docker.ask(lambda engine: engine.logs(container))
        except EngineError as error:
            raise NotSeenError(f"the engine does not give a service's log: {error}") from error
        return log

    async def _looked(self, attempt: int) -> list[dict[str, Any]]:
        try:
            return await self._docker.inspected(f"{LABEL_ATTEMPT}={attempt}", service.LABEL_SERVICE)
        except EngineError as error:
            raise NotSeenError(f"the engine does not say how the services are: {error}") from error
