"""Groups that only so many may be in: who enters, who waits, who has to go. Pure: members in, decisions out.

First in, first out, of any depth. A group is of one project and trust; groups of runs and of jobs are apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.pipeline.plan import WhenFull


@dataclass(frozen=True, slots=True)
class Member:
    """A run, or a job, in a group or before it, in the order of coming. `name`: for people."""

    id: int
    name: str
    limit: int
    when_full: WhenFull
    entered: bool = False
    deploys: bool = False
    """It is in a deployment: it is let finish."""
    leaving: bool = False
    """It was told to end already."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What is to happen: ids that enter, and ids that are canceled, each with the sentence that says why."""

    enter: tuple[int, ...] = ()
    cancel: tuple[tuple[int, str], ...] = ()


def admit(members: Sequence[Member]) -> Admission:
    """Who enters now. `members` in the order of their coming; each brings the limit of its own pipeline file."""
    cancel = _superseded(members)
    enter: list[int] = []
    # One that is on its way out holds its place until it is gone.
    inside = [each for each in members if each.entered]
    blocked = False
    for each in members:
        if each.entered or each.leaving or each.id in cancel:
            continue
        if blocked or len(inside) + len(enter) >= each.limit:
            if each.when_full is WhenFull.CANCEL_NEWER:
                cancel[each.id] = f"`{inside[0].name if inside else 'another'}` is in its group"
            else:
                blocked = True
        else:
            enter.append(each.id)
    return Admission(tuple(enter), tuple(cancel.items()))


def _superseded(members: Sequence[Member]) -> dict[int, str]:
    """Those that the newest `cancel-older` one replaces: all that wait before it, and of those inside the oldest, as
    many as have to make room. One in a deployment is let finish."""
    coming = [at for at, each in enumerate(members) if _waits(each) and each.when_full is WhenFull.CANCEL_OLDER]
    if not coming:
        return {}
    newest = members[coming[-1]]
    sentence = f"`{newest.name}` took its place in the group"
    cancel = {each.id: sentence for each in members[: coming[-1]] if _waits(each)}
    staying = [each for each in members if each.entered and not each.leaving]
    too_many = len(staying) + 1 - newest.limit
    for each in [each for each in staying if not each.deploys][: max(0, too_many)]:
        cancel[each.id] = sentence
    return cancel


def _waits(member: Member) -> bool:
    return not member.entered and not member.leaving
