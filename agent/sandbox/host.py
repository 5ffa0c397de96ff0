"""Jobs as plain processes of the agent's own user: no boundary at all.

Made only where the agent's own settings allow it, or for the user's own code on the user's own machine.
What it keeps of a sandbox is the cgroup, where there is one: limits, and a certain end.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agent.sandbox.cgroups import Cgroups
from agent.sandbox.limits import granted
from agent.sandbox.protocol import Ability, Limits, NotRemovedError, Prepared, SandboxRequest, Spawn
from headrace.pipeline.plan import Network, SandboxKind

_PASSED: Final = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSH_AUTH_SOCK")
"""What a job keeps of the user's environment; never a variable of the agent's own."""


class Host:
    """No sandbox. `environ` is the environment of the user whose agent this is."""

    kind = SandboxKind.HOST

    def __init__(
        self, *, slot: Limits, environ: Mapping[str, str], env: Mapping[str, str], cgroups: Cgroups | None
    ) -> None:
        """`env`: settings given to every step, over what is kept of `environ`."""
        self._slot = slot
        self._env = {**{name: environ[name] for name in _PASSED if name in environ}, **env}
        self._cgroups = cgroups

    async def ability(self) -> Ability:
        """It always works; the network is the host's, so a job that asks for none cannot be served."""
        return Ability(self.kind, frozenset({Network.FULL}), hard_limits=self._cgroups is not None)

    async def prepare(self, request: SandboxRequest) -> Prepared:
        """A shell in the attempt's cgroup; everything stays where it is on the host."""
        cgroups: tuple[Path, ...] = ()
        if self._cgroups is not None:
            cgroups = self._cgroups.make(request.attempt, granted(request.limits, self._slot))
        control = str(request.folder / "io")
        return Prepared(
            Spawn(argv=("/bin/sh", f"{control}/control", control), env={}, cgroups=cgroups),
            env=self._env,
            workspace=str(request.workspace),
            control=control,
            cgroups=cgroups,
        )

    async def remove(self, attempt: int) -> None:
        """Kills what is left in the attempt's cgroup, and removes it.

        Raises `NotRemovedError`; it may be tried again.
        """
        try:
            if self._cgroups is not None:
                await self._cgroups.remove(attempt)
        except OSError as error:
            raise NotRemovedError(f"what attempt {attempt} left is not removed: {error}") from error

    async def sweep(self, keep: frozenset[int]) -> None:
        """Removes the cgroups of attempts that are not in `keep`. Raises `NotRemovedError`."""
        if self._cgroups is not None:
            for attempt in sorted(self._cgroups.attempts() - keep):
                await self.remove(attempt)
