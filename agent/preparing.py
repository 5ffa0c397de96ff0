"""Makes an attempt's place: its workspace with the run's commit, its folder for what it has to say, its sandbox."""

from __future__ import annotations

import asyncio
import platform
from dataclasses import dataclass, replace
from pathlib import Path

from agent.parts import Parts
from agent.record import Record
from agent.sandbox.choose import Choice, Wish, choose
from agent.sandbox.protocol import Bind, Emptying, Prepared, SandboxRequest
from agent.sandboxes import OwnSettings
from agent.supervisor.client import SupervisorClient
from agent.workspace.checkout import Workspace
from agent.workspace.removal import NotRemoved, remove_tree
from headrace.pipeline.plan import Network, SandboxKind

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


async def choose_sandbox(record: Record, parts: Parts, client: SupervisorClient) -> Choice:
    """Decides where the job runs, and says so in its log. Raises `JobProblem`."""
    spec = record.spec
    await client.open_section("setup", "Set up")
    await client.say(f"agent {parts.name}, headrace {parts.version}, {platform.node()}, {platform.release()}\n")
    wish = Wish(
        kind=SandboxKind(spec.sandbox or "any"),
        image=spec.image,
        network=Network(spec.network or "full"),
        own_code=parts.policy.local and spec.source.own_code,
    )
    choice = choose(wish, parts.offer)
    if choice.note:
        await client.say(f"{choice.note}\n")
    image = f", image {choice.image}" if choice.image else ""
    await client.say(f"sandbox {choice.kind}{image}, network {wish.network}\n")
    return choice


async def make_workspace(record: Record, parts: Parts, home: Home, choice: Choice) -> Workspace:
    """The workspace at the run's commit, made anew if a killed agent left a part of it. Raises `JobProblem`."""
    if home.folder.exists():
        await asyncio.to_thread(home.clear)
        await parts.sandboxes[choice.kind].remove(record.attempt)
    home.folder.mkdir(mode=0o711)
    home.say.mkdir()
    home.say.chmod(0o777)  # the job's uid is unknown; other users of the host are kept out above
    return await parts.sources.make(
        record.spec,
        home.tree,
        blobs=parts.blobs.for_attempt(record.attempt, record.token),
        # In a container the job is root: git there distrusts a workspace that belongs to anybody else.
        owner=None if choice.kind is SandboxKind.DOCKER else parts.owner_of(record.slot),
        is_host=choice.kind is SandboxKind.HOST,
    )


async def make_sandbox(
    record: Record, parts: Parts, home: Home, *, workspace: Workspace, choice: Choice, folder: Path
) -> Prepared:
    """The sandbox, ready to be launched. Raises `JobProblem`."""
    spec = record.spec
    own_code = parts.policy.local and spec.source.own_code
    own = parts.policy.own if own_code else OwnSettings({}, ())
    request = SandboxRequest(
        attempt=record.attempt,
        agent=parts.directory.instance,
        slot=record.slot,
        folder=folder,
        workspace=home.tree,
        network=Network(spec.network or "full"),
        image=choice.image,
        binds=(*workspace.binds, Bind(home.say, SAY, writable=True), *(Bind(path, str(path)) for path in own.paths)),
        trusted=spec.trusted,
        own_code=own_code,
    )
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
