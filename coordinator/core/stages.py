"""Stages: the gate at their end, the door at their beginning; and the groups of cells inside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from coordinator.core.rules import Standing, Verdict, judged, survives
from coordinator.core.states import Cause
from headrace.pipeline.plan import Approval
from headrace.pipeline.values import EvaluationFailed, Expression, text_of


@dataclass(frozen=True, slots=True)
class Gate:
    """The end of a stage and of all stages before it. `unfinished`: its jobs, and the gate before it."""

    stage: int
    unfinished: int
    failed: int = 0
    decider: str = ""
    upstream_failed: bool = False
    """One of these jobs has failed by itself, and that counts."""
    guarded: bool = False
    """The stage has a door: an `if` that is judged late, or an approval."""


@dataclass(frozen=True, slots=True)
class Group:
    """The cells of a matrix with `max_parallel` (0: all at a time) or `fail_fast`. `active`: those that have begun,
    or may, and have not ended."""

    name: str
    max_parallel: int
    fail_fast: bool
    active: int = 0


class DoorState(StrEnum):
    """Where a stage's door stands."""

    CLOSED = "closed"
    ASKED = "asked"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person decided about an approval."""

    person: str
    approved: bool
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Door:
    """The beginning of a guarded stage. `values`: what its expressions look at."""

    stage: int
    name: str
    state: DoorState = DoorState.CLOSED
    condition: Expression | None = None
    approval: Approval | None = None
    decisions: tuple[Decision, ...] = ()
    sentence: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_asked(self) -> bool:
        """Whether a person has to decide."""
        return self.state is DoorState.ASKED


class CannotDecide(Exception):
    """One sentence for the person who wanted to decide."""


def asked_stage(run_id: int, asked: Mapping[int, str], wanted: str) -> int:
    """The stage that a person means, of those that wait for an approval (index and name). Raises CannotDecide."""
    found = [index for index, name in asked.items() if wanted in {"", name}]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"`{name}`" for name in asked.values())
    if not names:
        raise CannotDecide(f"run {run_id} waits for no approval")
    if not found:
        raise CannotDecide(f"the stage `{wanted}` of run {run_id} waits for no approval; these do: {names}")
    raise CannotDecide(f"several stages of run {run_id} wait for an approval, name one of them: {names}")


def decided(door: Door, decision: Decision) -> Door:
    """The door after a person's decision: one person counts once. Raises CannotDecide."""
    if door.state is not DoorState.ASKED or door.approval is None:
        raise CannotDecide(f"the stage `{door.name}` waits for no approval: it is {door.state}")
    if any(each.person == decision.person for each in door.decisions):
        raise CannotDecide(f"{decision.person} has decided about the stage `{door.name}` already")
    decisions = (*door.decisions, decision)
    comment = f": {decision.comment}" if decision.comment else ""
    if not decision.approved:
        return replace(
            door, state=DoorState.REJECTED, decisions=decisions, sentence=f"rejected by {decision.person}{comment}"
        )
    if len(decisions) < door.approval.count:
        return replace(door, decisions=decisions)
    sentence = f"approved by {decision.person}{comment}"
    return replace(door, state=DoorState.APPROVED, decisions=decisions, sentence=sentence)


def door_verdict(door: Door, before: Gate | None, *, canceling: bool) -> tuple[Verdict, Door]:
    """What a look at the door comes to: whether its jobs are let in, skipped or canceled, and the door then.

    `before`: the gate before it, which is open; None: it is the first. A door that let nobody in stays closed: a
    retry has it judged again.
    """
    match door.state:
        case DoorState.REJECTED | DoorState.EXPIRED:
            return Verdict(Cause.CANCELED, door.sentence), door
        case DoorState.APPROVED:
            return Verdict(), replace(door, state=DoorState.OPEN)
        case DoorState.ASKED | DoorState.OPEN:
            return Verdict(), door
    if canceling and not survives(door.condition):
        return Verdict(Cause.CANCELED, "the run was canceled"), door
    standing = Standing(0, "", upstream=False, canceling=canceling)
    if before is not None:
        standing = Standing(before.failed, before.decider, before.upstream_failed, canceling)
    verdict = judged(door.condition, standing, door.values, f"the `if` of the stage `{door.name}`")
    if verdict.cause is not Cause.NONE:
        return verdict, door
    if door.approval is None:
        return verdict, replace(door, state=DoorState.OPEN)
    return verdict, replace(door, state=DoorState.ASKED, sentence=_question(door, door.approval))


def _question(door: Door, approval: Approval) -> str:
    whom = f" from {', '.join(approval.whom)}" if approval.whom else ""
    count = f"{approval.count} approvals" if approval.count > 1 else "an approval"
    try:
        message = text_of(approval.message, door.values)
    except EvaluationFailed as error:
        message = str(error)
    return f"waits for {count}{whom}" + (f": {message}" if message else "")
