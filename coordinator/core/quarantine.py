"""When an agent gets no further jobs because the machinery failed on it again and again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from coordinator.core.states import AttemptState, Cause

_SAID = 300


@dataclass(frozen=True, slots=True)
class Reliance:
    """How far an agent is relied on."""

    agent: str
    errored: int = 0
    """Attempts in a row that the machinery failed."""
    quarantine: str = ""
    """Why it gets no jobs, and how to let it work again; empty: it gets them."""


@dataclass(frozen=True, slots=True)
class Told:
    """How an attempt on it ended, as the agent told."""

    outcome: AttemptState
    cause: Cause
    sentence: str

    @property
    def counts(self) -> bool:
        """Whether the machinery failed, and nothing else. What a job may bring about (it takes all memory of the
        machine, it kills its own sandbox) tells nothing of the agent, and so does an attempt that was lost.
        """
        return self.outcome is AttemptState.ERRORED and self.cause is Cause.ERRORED

    @property
    def clears(self) -> bool:
        """Whether the agent did its work: also where the user's command failed, or the source could not be had."""
        return self.outcome is not AttemptState.ERRORED


def after(reliance: Reliance, told: Iterable[Told], most: int) -> Reliance:
    """What is thought of an agent after these attempts, in order. `most` in a row end its work; 0: never."""
    for each in told:
        if each.clears:
            reliance = replace(reliance, errored=0)
        elif each.counts:
            reliance = replace(reliance, errored=reliance.errored + 1)
            if most and reliance.errored >= most and not reliance.quarantine:
                last = (each.sentence or each.cause)[:_SAID]
                why = f"{reliance.errored} attempts in a row ended `errored`, the last with: {last}"
                mend = f"when that is mended, `headrace drain {reliance.agent} --undo` lets it work again"
                reliance = replace(reliance, quarantine=f"{why}; {mend}")
    return reliance
