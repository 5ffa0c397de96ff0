"""Makes an attempt's place: its workspace with the run's commit, its folder for what it has to say, its sandbox."""

from __future__ import annotations

import asyncio
import platform
import re
from dataclasses import dataclass, replace
from pathlib import Path

from agent import late
from agent.parts import Parts
from agent.problems import Cause, JobProblem
from agent.record import Record
from agent.sandbox.choose import Choice, Wish, choose
from agent.sandbox.limits import asked_for, beyond
from agent.sandbox.protocol import Bind, Emptying, Limits, Prepared, SandboxRequest
from agent.sandboxes import OwnSettings
from agent.services import Services, services_of
from agent.supervisor.client import SupervisorClient
from agent.workspace.checkout import Workspace
from agent.workspace.digest import digest_of
from agent.workspace.removal import NotRemoved, remove_tree
from agent.workspace.tree import Tree
from headrace.pipeline.plan import Network, SandboxKind
from headrace.pipeline.problems import shown
from headrace.pipeline.values import EvaluationFailed, text_of
from headrace.v1 import common_pb2 as pb

_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}")
SAY = "/headrace"
"""Where a step finds the folder for what it has to say."""


@dataclass(frozen=True, slots=True)
class Home:
    """An attempt's folder below `workspaces`: the agent's own; what jobs write to lies inside."""

    folder: Path

    @property
    def tree(self) -> Path:
        """The workspace."""
        return self.folder / "tree"

    @property
    def say(self) -> Path:
        """What steps say: outputs, environment."""
        return self.folder / "say"

    def clear(self) -> None:
        """Removes all of it. Blocks. Raises `NotRemoved`."""
        remove_tree(self.folder)


def _evaluated(record: Record) -> str:
    """The job's image. Its variables that were left to the agent are evaluated too, for the record.

    Raises `JobProblem` for what cannot be computed.
    """
    spec = record.spec
    try:
        record.env = late.evaluated_env(spec.late_env, late.values_of_job(record))
        if not spec.HasField("late_image"):
            return spec.image
        image = text_of(late.template_of(spec.late_image), late.values_of_job(record))
    except EvaluationFailed as error:
        raise JobProblem(Cause.EXPRESSION_FAILED, str(error)) from error
    if not _IMAGE.fullmatch(image):
        raise JobProblem(Cause.IMAGE_UNAVAILABLE, f"`image` came to {shown(image)}, which is the name of no image")
    return image


async def choose_sandbox(record: Record, parts: Parts, client: SupervisorClient) -> Choice:
    """Decides where the job runs, and says so in its log. Raises `JobProblem`."""
    spec = record.spec
    await client.open_section("setup", "Set up")
    await client.say(f"agent {parts.name}, headrace {parts.version}, {platform.node()}, {platform.release()}\n")
    asked = _limits(spec)
    if sentence := beyond(asked, parts.offer.slot):
        raise JobProblem(Cause.REFUSED, sentence)
    wish = Wish(
        kind=SandboxKind(spec.sandbox or "any"),
        image=_evaluated(record),
        network=Network(spec.network or "full"),
        hard_limits=asked != Limits(),
        own_code=parts.policy.local and spec.source.own_code,
        services=bool(spec.services),
    )
    choice = choose(wish, parts.offer)
    if choice.note:
        await client.say(f"{choice.note}\n")
    with_image = f", image {choice.image}" if choice.image else ""
    await client.say(f"sandbox {choice.kind}{with_image}, network {wish.network}\n")
    if spec.resources.disk:
        await client.say(f"{spec.resources.disk:,} bytes of disk are asked for: that is not enforced\n")
    return choice


def _limits(spec: pb.JobSpec) -> Limits:
    return asked_for(spec.resources.cpu, spec.resources.memory, spec.resources.pids)


async def _say_caches(record: Record, parts: Parts, home: Home, client: SupervisorClient) -> None:
    """Says of each cache that it is a miss, and under which key: that much can be looked at before there are any."""
    if not record.spec.caches:
        return
    await client.open_section("cache", "Restore caches")
    lines = await asyncio.to_thread(_cache_lines, record, parts, home)
    await client.say("".join(f"{line}\n" for line in lines))


def _cache_lines(record: Record, parts: Parts, home: Home) -> list[str]:
    def hash_of(*globs: str) -> str:
        with Tree.open(home.tree) as tree:
            return digest_of(tree, globs, lambda: parts.clock.monotonic_ms() / 1000)

    values = late.values_of_job(record)
    lines = []
    for cache in record.spec.caches:
        try:
            key = text_of(late.template_of(cache.key), values, {"hash": hash_of})
            lines.append(f"cache {key}: a miss (caches are not built yet)")
        except EvaluationFailed as error:
            lines.append(f"cache without a key: {error}")
    return lines


async def make_place(
    record: Record, parts: Parts, client: SupervisorClient, home: Home, *, choice: Choice, folder: Path
) -> Prepared:
    """Workspace and services side by side, then the sandbox, ready to be launched. Raises `JobProblem`."""
    if home.folder.exists():  # an agent that was killed had begun
        await asyncio.to_thread(home.clear)
        await parts.sandboxes[choice.kind].remove(record.attempt)
    request = _request_of(record, parts, home, choice=choice, folder=folder)
    async with Services(request, parts.service_host, client) as services:
        await client.open_section("checkout", "Check out")
        since = parts.clock.monotonic_ms()
        workspace = await _make_workspace(record, parts, home, choice)
        record.timings["checkout_ms"] = parts.clock.monotonic_ms() - since
        if record.spec.checkout.enabled:
            brought = f"{workspace.fetched.objects} objects fetched" if workspace.fetched.objects else "all was there"
            notes = "".join(f"{note}\n" for note in workspace.notes)
            await client.say(f"commit {record.spec.source.commit}: {brought}\n{notes}")
        await _say_caches(record, parts, home, client)
        await services.ready()
    return await _make_sandbox(request, parts, home, workspace=workspace, choice=choice)


async def _make_workspace(record: Record, parts: Parts, home: Home, choice: Choice) -> Workspace:
    """The workspace at the run's commit. Raises `JobProblem`."""
    home.folder.mkdir(mode=0o711)
    home.say.mkdir()
    home.say.chmod(0o777)  # the job's uid is unknown; other users of the host are kept out above
    return await parts.sources.make(
        record.spec,
        home.tree,
        blobs=parts.blobs.for_attempt(record.attempt, record.token),
        owner=parts.owner_in(choice.kind, record.slot),
        is_host=choice.kind is SandboxKind.HOST,
    )


def _request_of(record: Record, parts: Parts, home: Home, *, choice: Choice, folder: Path) -> SandboxRequest:
    """What the sandbox and the services are told. Raises `JobProblem`."""
    spec = record.spec
    return SandboxRequest(
        attempt=record.attempt,
        agent=parts.directory.instance,
        slot=record.slot,
        folder=folder,
        workspace=home.tree,
        network=Network(spec.network or "full"),
        image=choice.image,
        limits=_limits(spec),
        trusted=spec.trusted,
        own_code=parts.policy.local and spec.source.own_code,
        services=services_of(spec),
    )


async def _make_sandbox(
    request: SandboxRequest, parts: Parts, home: Home, *, workspace: Workspace, choice: Choice
) -> Prepared:
    """The sandbox, ready to be launched. Raises `JobProblem`."""
    own = parts.policy.own if request.own_code else OwnSettings({}, ())
    shown = (*workspace.binds, Bind(home.say, SAY, writable=True), *(Bind(path, str(path)) for path in own.paths))
    request = replace(request, binds=shown)
    prepared = await parts.sandboxes[choice.kind].prepare(request)
    return replace(prepared, env={**own.env, **prepared.env})


def facts_of(prepared: Prepared, home: Home, choice: Choice) -> dict[str, object]:
    """What the steps need to know of the place, for the attempt's record."""
    say = str(home.say) if choice.kind is SandboxKind.HOST else SAY
    return {"env": dict(prepared.env), "workspace": prepared.workspace, "say": say, "image": prepared.image}


async def clear_home(record: Record, parts: Parts, home: Home) -> None:
    """Removes the attempt's place; what a container's root left in it and the agent may not remove, a container does.

    Raises `NotRemoved`, `NotRemovedError`, `OSError`.
    """
    try:
        await asyncio.to_thread(home.clear)
    except (NotRemoved, OSError):
        sandbox = parts.sandboxes[SandboxKind(record.sandbox)] if record.facts.get("image") else None
        if not isinstance(sandbox, Emptying):
            raise
        await sandbox.empty(record.attempt, home.folder, (home.tree.name, home.say.name), record.facts["image"])
        await asyncio.to_thread(home.clear)
