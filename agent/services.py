"""The services of an attempt: begun beside the checkout, ready before the first step, looked at after the last.

Nothing is remembered of them: the engine's labels lead to them, also after a restart of the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from agent.outcome import Outcome
from agent.parts import Parts
from agent.problems import Cause, JobProblem
from agent.record import Record
from agent.sandbox.protocol import Limits, NotSeenError, SandboxRequest, Service, ServiceHost, ServiceState
from agent.supervisor.client import SupervisorClient, SupervisorGone
from headrace.v1 import common_pb2

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_READY_MS: Final = 60_000
"""To become ready, where the job says nothing."""
_LOOK_S: Final = 0.2
_LOOKS_S: Final = 20.0
"""For what is asked of the engine after the steps: the job does not wait longer for an engine that hangs."""


def services_of(spec: common_pb2.JobSpec) -> tuple[Service, ...]:
    """The services that a job asks for. Raises `JobProblem`."""
    found = tuple(
        Service(each.name, each.image, dict(each.env), each.ready, (each.timeout_ms or _READY_MS) / 1000)
        for each in spec.services
    )
    for each in found:
        if not _NAME.fullmatch(each.name) or each.name == "localhost":
            sentence = (
                f"service {each.name[:80]!r}: its name is a host name: letters a to z, digits and hyphens, at most 63"
            )
            raise JobProblem(Cause.REFUSED, sentence)
        # The engine repeats in its error what it takes for no variable.
        if wrong := [name for name, value in each.env.items() if not _VARIABLE.fullmatch(name) or "\0" in value]:
            sentence = (
                f"service {each.name}: {wrong[0][:80]!r} of its `env` is no variable's name, or its value has a NUL"
            )
            raise JobProblem(Cause.REFUSED, sentence)
    if len({each.name for each in found}) != len(found):
        raise JobProblem(Cause.REFUSED, "two services of the job have the same name")
    return found


class Services:
    """What is begun while inside, and given up when the way out is an exception."""

    def __init__(self, request: SandboxRequest, host: ServiceHost, client: SupervisorClient) -> None:
        self._request = request
        self._host = host
        self._client = client
        self._opening: asyncio.Task[None] | None = None
        self._starts: dict[str, asyncio.Task[float]] = {}

    async def __aenter__(self) -> Self:
        if self._request.services:
            self._opening = asyncio.create_task(self._host.open_network(self._request), name="network of services")
            for service in self._request.services:
                starting = self._start(service, self._opening)
                self._starts[service.name] = asyncio.create_task(starting, name=f"service {service.name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tasks = [*self._starts.values(), *([self._opening] if self._opening is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _start(self, service: Service, opening: asyncio.Task[None]) -> float:
        """When it was started, by the loop's clock."""
        await opening
        await self._host.begin_service(self._request, service)
        return asyncio.get_running_loop().time()

    async def ready(self) -> None:
        """Waits until all are ready, side by side, and says so in the log.

        Raises:
            JobProblem: the first one that failed, with the last of its log in the job's.

        """
        if not self._starts:
            return
        await self._client.open_section("services", "Start services")
        waits = [asyncio.create_task(self._wait(each), name=f"ready {each.name}") for each in self._request.services]
        try:
            await asyncio.gather(*waits)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _wait(self, service: Service) -> None:
        began = await self._starts[service.name]
        loop = asyncio.get_running_loop()
        await self._client.say(f"{service.name}: image {service.image}, started\n")
        while True:
            state = (await self._looked()).get(service.name)
            took = loop.time() - began
            if state is not None and state.ready:
                await self._client.say(f"{service.name}: ready after {took:.1f} s{_room(state.limits)}\n")
                return
            if why := _why_not(service, state, took):
                await _show_log(self._host, self._client, self._request.attempt, service.name)
                if state is not None and state.said:  # for the log alone, which is masked: it may name a password
                    await self._client.say(f"{service.name}: its `ready` command said: {state.said}\n")
                raise JobProblem(Cause.SERVICE_FAILED, f"service {service.name} {why}")
            await asyncio.sleep(_LOOK_S)

    async def _looked(self) -> dict[str, ServiceState]:
        try:
            return dict(await self._host.services(self._request.attempt))
        except NotSeenError as error:
            raise JobProblem(Cause.ERRORED, str(error)) from error


def _why_not(service: Service, state: ServiceState | None, took: float) -> str:
    """Why a service will not become ready; empty: it still may."""
    if state is None or not state.running:
        return _gone(state)
    if state.shell_missing:
        return (
            f"cannot run its `ready` command: image {service.image} has no sh; leave `ready` out, or use another image"
        )
    return "" if took < service.timeout_s else f"was not ready after {service.timeout_s:g} s"


def _gone(state: ServiceState | None) -> str:
    if state is None:
        return "is not there any more: somebody removed its container"
    memory = f", out of memory at its own limit{_room(state.limits)}" if state.out_of_memory else ""
    return f"ended by itself with exit code {state.exit_code}{memory}"


def _room(limits: Limits) -> str:
    """What it was given of the slot, in brackets; empty: no bounds."""
    cpu = f"{limits.cpu:.3g} cores" if limits.cpu else ""
    memory = f"{limits.memory >> 20:,} MiB" if limits.memory else ""
    return f" ({', '.join(filter(None, (cpu, memory)))})" if cpu or memory else ""


async def told(ended: Outcome, record: Record, parts: Parts, client: SupervisorClient) -> Outcome:
    """What the steps came to, seen with their services: one that ended by itself is told, with the last of its log,
    and is the cause if a step failed. Steps that passed all the same have passed. Never raises.
    """
    if not record.spec.services:
        return ended
    try:
        async with asyncio.timeout(_LOOKS_S):
            states = await parts.service_host.services(record.attempt)
            named = [each.name for each in record.spec.services]
            # One that is not there any more went with the sandbox, where only the engine may end that.
            gone = [name for name in named if name in states and not states[name].running]
            sentence = ", ".join(f"service {name} {_gone(states[name])}" for name in gone)
            await _tell(parts.service_host, client, record.attempt, gone, sentence)
    except (NotSeenError, TimeoutError) as error:
        parts.journal.warning("services not looked at", attempt=record.attempt, error=str(error))
        return ended
    if gone and ended.cause in (Cause.STEP_FAILED, Cause.STEP_TIMED_OUT):
        return Outcome(Cause.SERVICE_FAILED, f"{sentence}; {ended.sentence}")
    return ended


async def _tell(host: ServiceHost, client: SupervisorClient, attempt: int, gone: Sequence[str], sentence: str) -> None:
    with contextlib.suppress(SupervisorGone, JobProblem):
        if gone:
            await client.open_section("services", "Services that ended")
            for name in gone:
                await _show_log(host, client, attempt, name)
            await client.say(f"headrace: {sentence}\n")
            await client.close_section(sentence)


async def _show_log(host: ServiceHost, client: SupervisorClient, attempt: int, name: str) -> None:
    """The last of a service's output, each line with its name before it: no service speaks in our name."""
    with contextlib.suppress(NotSeenError):
        log = await host.service_log(attempt, name)
        lines = log.decode("utf-8", "replace").splitlines() or ["(it wrote nothing)"]
        await client.say("".join(f"{name} | {line}\n" for line in lines))
