"""Where an engine puts the containers of an agent's jobs: into the agent's own group, where that can be had."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final

from agent.problems import Cause, JobProblem
from agent.sandbox.cgroups import Cgroups
from agent.sandbox.protocol import Limits

SLICE: Final = "headracejobs.slice"
"""For an engine whose groups systemd makes; its bounds are in deploy/systemd. One that is not installed has none."""


class EngineGroup:
    """The group of one agent's containers; `cgroups` is None where the agent can make none."""

    def __init__(self, cgroups: Cgroups | None) -> None:
        self._cgroups = cgroups
        self._driver = ""

    async def learn(self, facts: Mapping[str, Any], slot: Limits) -> None:
        """From what the engine says of itself; until then containers are where it puts them by itself."""
        self._driver = str(facts.get("CgroupDriver", ""))
        if self._cgroups is not None and not await self._cgroups.try_out(slot):
            self._cgroups = None

    def open(self, attempt: int) -> str:
        """The group for the attempt's containers, as the engine names it; empty: its own. Raises `JobProblem`."""
        if self._cgroups is None:
            return ""
        match self._driver:
            case "cgroupfs":
                try:
                    self._cgroups.hold(attempt)
                except OSError as error:
                    sentence = f"the group of the job could not be made: {error.filename}: {error.strerror}"
                    raise JobProblem(Cause.ERRORED, sentence) from error
                return self._cgroups.inside
            case "systemd":
                return SLICE
            case _:
                return ""

    async def close(self, attempt: int, containers: Iterable[str]) -> None:
        """The attempt's containers were removed: the group goes with the last ones."""
        if self._cgroups is not None:
            await asyncio.gather(*map(self._cgroups.gone, containers))
            self._cgroups.let_go(attempt)

    def tidy(self) -> None:
        """Removes what a crash has left of an empty group."""
        if self._cgroups is not None:
            self._cgroups.tidy()
