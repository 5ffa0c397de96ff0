"""An agent's git, mirrors and workspaces, without the agent around them."""

from __future__ import annotations

from pathlib import Path

from agent.workspace.checkout import Checkouts, Wanted, Workspace
from agent.workspace.git import Git
from agent.workspace.mirror import Mirrors, Origin
from agent.workspace.tree import Owner
from agent.workspace.upstream import Upstream
from headrace.pipeline.plan import Checkout


class Agent:
    """An agent's git, mirrors and workspaces in one folder."""

    def __init__(self, state: Path, *, lfs_limit: int = 1 << 20, git: Git | None = None) -> None:
        self.state = state
        self.git = git or Git(state / "git", {})
        self.mirrors = Mirrors(self.git, state / "mirrors", keep_commits=3)
        self.mirror = self.mirrors.of("shop", trusted=True)
        self.checkouts = Checkouts(self.git, self.mirrors, lfs_limit=lfs_limit)
        self.made = 0

    async def check_out(
        self,
        origin: Origin,
        commit: str,
        checkout: Checkout | None = None,
        *,
        owner: Owner | None = None,
        inside: bool = False,
        trusted: bool = True,
        upstream: Upstream | None = None,
    ) -> Workspace:
        """A workspace whose borrowed objects are found on the host, unless it is meant for a sandbox."""
        self.made += 1
        known = upstream or Upstream()
        wanted = Wanted("shop", origin, commit, checkout or Checkout(), trusted=trusted, upstream=known)
        folder = self.state / f"workspace{self.made}"
        return await self.checkouts.make(wanted, folder, owner=owner, is_host=not inside)
