"""The agent's composition root: the only place where its parts are wired together and settings are read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from importlib import metadata
from pathlib import Path

import httpx
import structlog
import uvloop

from agent.blobs import Blobs
from agent.calls import Calls
from agent.clock import SystemClock
from agent.connection import Connection, Ending
from agent.forwarder import Forwarder
from agent.holding import Held, before_a_child, hold_out, told
from agent.jobs import RunningJobs
from agent.keeping import Records
from agent.metrics import Metrics
from agent.parts import Lease, Parts, Policy
from agent.quarantine import Quarantine
from agent.sandbox.choose import Offer
from agent.sandbox.protocol import Ability, Limits
from agent.sandboxes import Machine, find
from agent.session import Identity, Outbox
from agent.settings import Settings
from agent.source import Sources
from agent.state import DataDirectory, Unusable, open_directory
from agent.supervisor.damage import Damage
from agent.web import pages
from agent.wire import Access, appends, sessions
from agent.workspace.git import Git, passed_on
from agent.workspace.mirror import Mirrors
from agent.workspace.mounts import MountFailed, guard_workspaces, release_workspaces
from agent.workspace.transfers import Courier
from headrace.daemon import logs
from headrace.daemon.ready import say_ready
from headrace.daemon.serving import CannotListen, address_of, listen, serving
from headrace.daemon.settings import BadSettings, read
from headrace.pipeline.plan import SandboxKind
from headrace.v1 import agent_pb2

_log = structlog.get_logger("agent")
_HAND_IN_S = 5.0
"""What a coordinator gets to take outcomes and logs of an agent that was told twice to leave."""
_CONFIG = Path("/etc/headrace/agent.toml")


def main(flags: Mapping[str, object]) -> int:
    """Runs an agent until it has left. Returns 0, 2 for what is set wrong, 3 for what a coordinator refuses."""
    try:
        settings, warnings = read(Settings, flags, os.environ, _CONFIG)
    except BadSettings as error:
        return _refuse(Ending(2, str(error)))
    logs.set_up(settings.log_level)
    for warning in warnings:
        _log.warning(warning)
    try:
        ending = uvloop.run(run(settings, os.environ))
    except (BadSettings, Unusable, CannotListen, MountFailed) as error:
        return _refuse(Ending(2, str(error)))
    return 0 if ending is None else _refuse(ending)


def _refuse(ending: Ending) -> int:
    sys.stderr.write(f"headrace agent: {ending.sentence}\n")
    return ending.exit_code


async def run(settings: Settings, environment: Mapping[str, str]) -> Ending | None:
    """From settings to the end. The exit stack closes in reverse: jobs, logs, pages, the directory."""
    held = hold_out()
    rng = random.SystemRandom()
    clock, metrics, outbox = SystemClock(), Metrics(), Outbox()
    access = _access(settings)
    jobs = RunningJobs(outbox, settings.slots)
    leaving = Leaving(outbox, jobs)
    leaving.heed_signals()
    async with AsyncExitStack() as up:
        directory = open_directory(settings.data_dir, new_id=secrets.token_hex(8))
        up.callback(directory.close)
        up.push_async_callback(_release, directory)
        await guard_workspaces(directory.workspaces)
        machine, abilities = await _found(settings, directory, environment, held)
        noticing = Noticing(outbox, metrics)
        quarantine = Quarantine(noticing.disk_failed)
        forwarder = Forwarder(appends(access), settings.url, rng=rng, heard=noticing)
        courier = Courier(await up.enter_async_context(httpx.AsyncClient(timeout=60.0, follow_redirects=False)))
        calls = Calls(access, settings.url, rng)
        parts = Parts(
            name=settings.name,
            version=metadata.version("headrace"),
            directory=directory,
            records=Records(directory.records, quarantine.begin),
            sandboxes=machine.sandboxes,
            service_host=machine.service_host,
            offer=Offer(abilities, settings.docker_image, settings.allow_host, machine.slot),
            owner_of=machine.owner_of,
            sources=_sources(settings, directory, courier, environment, held),
            courier=courier,
            calls=calls,
            blobs=Blobs(calls),
            forwarder=forwarder,
            clock=clock,
            new_id=lambda: secrets.token_hex(16),
            hand_in=outbox.hand_in,
            permit=jobs.permit,
            lease=Lease(),
            policy=_policy(settings, machine),
            quarantine=quarantine,
            metrics=metrics,
            journal=_log,
        )
        listener = Standing(settings, metrics)
        await _serve_metrics(up, settings, metrics, listener, directory)
        connection = Connection(
            sessions(access),
            settings.url,
            _identity(settings, parts, machine),
            jobs,
            outbox,
            clock=clock,
            rng=rng,
            listener=listener,
            generation=parts.directory.next_start(),
        )
        return await _serve(connection, jobs, forwarder, leaving, parts)


async def _found(
    settings: Settings, directory: DataDirectory, environment: Mapping[str, str], held: Held
) -> tuple[Machine, Mapping[SandboxKind, Ability]]:
    """What this machine can do, and says so."""
    machine = find(settings, directory.instance, directory.root / "sandboxes", environment)
    abilities = await machine.abilities()
    _tell_abilities(abilities)
    _tell_held(machine, held)
    return machine, abilities


async def _serve_metrics(
    up: AsyncExitStack, settings: Settings, metrics: Metrics, listener: Standing, directory: DataDirectory
) -> None:
    if not settings.metrics_listen:
        return
    socket = listen(settings.metrics_listen, setting="HEADRACE_METRICS_LISTEN")
    listener.http = address_of(socket)
    _log.info("metrics", address=listener.http)
    app = pages(metrics, lambda: listener.connected, lambda: metrics.spool_bytes.set(directory.spooled()))
    await up.enter_async_context(serving(app, socket))


async def _release(directory: DataDirectory) -> None:
    """Takes the mount of the workspaces away, unless a supervisor still has a job there."""
    if any(directory.attempts.iterdir()):
        return
    try:
        await release_workspaces(directory.workspaces)
    except MountFailed as error:
        _log.warning("the mount stays", folder=str(directory.workspaces), why=str(error))


async def _serve(
    connection: Connection, jobs: RunningJobs, forwarder: Forwarder, leaving: Leaving, parts: Parts
) -> Ending | None:
    """Until a coordinator refuses for good, or SIGTERM has come and the last job is done."""
    ending: Ending | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            forwarding = tasks.create_task(forwarder.run(), name="logs")
            await jobs.open(parts, tasks)
            ending = await connection.run(leaving.begin(tasks))
            if ending is not None or not jobs.idle:
                raise _Refused
            forwarding.cancel()
    except* _Refused:
        _log.warning("the agent ends; what is left of its jobs waits for the next start")
    finally:
        leaving.end()
    return ending


class _Refused(Exception):
    """Ends the task group: running jobs are left to their supervisors."""


class Leaving:
    """SIGTERM or SIGINT: drain, finish, leave. A second one: cancel, clean up, leave. A third: kill, leave.

    They are heeded from the first moment to the last: by default they would end the agent beside its mount.
    """

    def __init__(self, outbox: Outbox, jobs: RunningJobs) -> None:
        self._outbox = outbox
        self._jobs = jobs
        self._stop = asyncio.Event()
        self._times = 0
        self._tasks: asyncio.TaskGroup | None = None

    def heed_signals(self) -> None:
        """From now on."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told)

    def begin(self, tasks: asyncio.TaskGroup) -> asyncio.Event:
        """Does in these tasks what signals say, also those that came before; returns what is set in the end."""
        self._tasks, told = tasks, self._times
        self._times = 0
        for _ in range(told):
            self._told()
        return self._stop

    def end(self) -> None:
        """The jobs are over: what is told now changes nothing."""
        self._tasks = None

    def _told(self) -> None:
        self._times += 1
        tasks = self._tasks
        if tasks is None:
            return
        if self._times == 1:
            _log.info("leaving: no new jobs; those that run are finished")
            self._outbox.leave()
            tasks.create_task(self._when_idle(), name="leaving")
        elif self._times == 2:
            _log.info("leaving: jobs are canceled")
            self._jobs.cancel_all("the agent was told to stop")
            tasks.create_task(self._when_free(), name="leaving at once")
        else:
            _log.info("leaving: jobs are killed")
            self._jobs.kill_all("the agent was told to stop")

    async def _when_free(self) -> None:
        """Nobody may be there to hand outcomes and logs to: they keep until the next start."""
        while self._jobs.occupying():  # noqa: ASYNC110 - seldom, and once
            await asyncio.sleep(0.1)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._jobs.wait_idle(), _HAND_IN_S)
        self._stop.set()

    async def _when_idle(self) -> None:
        await self._jobs.wait_idle()
        self._stop.set()


class Noticing:
    """What is counted and told of logs and of the disk that they are on."""

    def __init__(self, outbox: Outbox, metrics: Metrics) -> None:
        self._outbox = outbox
        self._metrics = metrics

    def arrived(self, size: int) -> None:
        """So many compressed bytes of logs were handed in."""
        self._metrics.log_bytes.inc(size)

    def damaged(self, attempt: int, damage: Damage) -> None:
        """Some of a log could not be read any more."""
        self._metrics.damaged_records.inc(damage.last - damage.first + 1)
        self._metrics.damaged_bytes.inc(damage.missing)
        _log.warning("log damaged on disk", attempt=attempt, first=damage.first, last=damage.last, bytes=damage.missing)

    def disk_failed(self, sentence: str) -> None:
        """The agent stays away from work."""
        self._metrics.quarantined.set(1)
        _log.error("the disk failed", why=sentence)
        self._outbox.stay_away(sentence)


class Standing:
    """What is known of the connection: for logs, metrics, `/readyz` and whoever started the agent."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.connected = False
        self.http = ""
        self._settings = settings
        self._metrics = metrics
        self._ready_fd = settings.ready_fd
        metrics.slots.set(settings.slots)

    def welcomed(self, address: str, session_id: str) -> None:
        """A session has begun."""
        _log.info("connected", address=address, session=session_id)
        self.connected = True
        self._metrics.connected.set(1)
        say_ready(self._ready_fd, {"agent": self._settings.name, "address": address, "http": self.http})
        self._ready_fd = None

    def parted(self, address: str, sentence: str) -> None:
        """It ended, or could not begin."""
        _log.warning("not connected", address=address, why=sentence)
        self.connected = False
        self._metrics.connected.set(0)
        self._metrics.reconnects.inc()


def _access(settings: Settings) -> Callable[[str], Access]:
    """How each address is spoken to. Raises `BadSettings`."""
    token = settings.credential()
    try:
        roots = settings.ca_file.read_bytes() if settings.ca_file is not None else None
    except OSError as error:
        raise BadSettings(f"ca_file: {settings.ca_file} cannot be read: {error.strerror}") from error
    return lambda address: Access(token, secure=settings.is_secure(address), roots=roots)


def _sources(
    settings: Settings, directory: DataDirectory, courier: Courier, environment: Mapping[str, str], held: Held
) -> Sources:
    git = Git(directory.root / "git", passed_on(environment), before=before_a_child(held))
    mirrors = Mirrors(git, directory.root / "mirrors")
    return Sources(git, mirrors, courier, local=settings.local, lfs_limit=settings.lfs_limit)


def _policy(settings: Settings, machine: Machine) -> Policy:
    return Policy(
        spool_limit=settings.spool_limit,
        spool_agent=settings.spool_agent,
        log_limit=settings.log_limit,
        local=settings.local,
        own=machine.own,
    )


def _identity(settings: Settings, parts: Parts, machine: Machine) -> Identity:
    return Identity(
        instance_id=parts.directory.instance,
        name=settings.name,
        version=parts.version,
        pool=settings.pool,
        slots=settings.slots,
        labels=settings.labels,
        sandboxes=tuple(map(_ability, _offered(parts.offer.abilities, settings))),
        slot_share=agent_pb2.SlotShare(memory=machine.slot.memory or 0, cpu=machine.slot.cpu or 0.0),
    )


def _offered(abilities: Mapping[SandboxKind, Ability], settings: Settings) -> list[Ability]:
    """What jobs may ask for. Made only for a user's own code, the host is nothing that a job can name."""
    if settings.allow_host:
        return list(abilities.values())
    why_not = "its settings do not let jobs run on the host: HEADRACE_ALLOW_HOST=true lets them"
    barred = Ability(SandboxKind.HOST, frozenset(), hard_limits=False, why_not=why_not)
    return [*(ability for kind, ability in abilities.items() if kind is not SandboxKind.HOST), barred]


def _ability(ability: Ability) -> agent_pb2.SandboxAbility:
    return agent_pb2.SandboxAbility(
        kind=ability.kind,
        networks=sorted(ability.networks),
        hard_limits=ability.hard_limits,
        why_not=ability.why_not,
    )


def _tell_abilities(abilities: Mapping[SandboxKind, Ability]) -> None:
    for kind, ability in abilities.items():
        facts = {"networks": sorted(map(str, ability.networks)), "hard_limits": ability.hard_limits}
        _log.info("sandbox", kind=kind.value, **({"why_not": ability.why_not} if ability.why_not else facts))


def _tell_held(machine: Machine, held: Held) -> None:
    """What keeps the agent going beside jobs that take everything."""
    cgroups = machine.cgroups if machine.cgroups is not None and machine.cgroups.works else None
    bounds = machine.together if cgroups is not None else Limits()
    words = told(held, memory=bounds.memory, processes=bounds.pids, weighs=cgroups is not None and cgroups.weighs)
    _log.info("holds out", **words)
