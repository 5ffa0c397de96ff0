"""An agent's git, mirrors and workspaces, without the agent around them."""

from __future__ import annotations

from pathlib import Path

from agent.workspace.checkout import OBJECTS, Wanted, Workspace, check_out
from agent.workspace.git import Git
from agent.workspace.mirror import Mirrors, Origin
from agent.workspace.tree import Owner
from headrace.pipeline.plan import Checkout


class Agent:
    """An agent's git, mirrors and workspaces in one folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.git = Git(state / "git", {})
        self.mirrors = Mirrors(self.git, state / "mirrors", keep_commits=3)
        self.mirror = self.mirrors.of("shop", trusted=True)
        self.made = 0

    async def check_out(
        self,
        origin: Origin,
        commit: str,
        checkout: Checkout | None = None,
        *,
        owner: Owner | None = None,
        inside: bool = False,
    ) -> Workspace:
        """A workspace whose borrowed objects are found on the host, unless it is meant for a sandbox."""
        self.made += 1
        wanted = Wanted(origin, commit, checkout or Checkout())
        at = OBJECTS if inside else str(self.mirror.objects)
        folder = self.state / f"workspace{self.made}"
        return await check_out(self.git, self.mirror, wanted, folder, owner=owner, objects_at=at)
