"""Which agent can take which job, and why none can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a class of jobs requires of an agent."""

    pool: str
    labels: tuple[tuple[str, str], ...]
    """Sorted (label, value) pairs."""
    sandbox: str
    """any | docker | bubblewrap | host"""
    network: str
    """full | none | services"""
    trusted: bool = True
    cpu: float = 0.0
    """Of one slot's share; 0: whatever it is."""
    memory: int = 0
    hard_limits: bool = False
    """It asks for amounts: the kernel has to hold the job to them."""


@dataclass(frozen=True, slots=True)
class Ability:
    """A sandbox kind of an agent. `networks` is empty when it cannot be used, and `why_not` says why."""

    kind: str
    networks: frozenset[str]
    why_not: str = ""
    hard_limits: bool = field(default=False, kw_only=True)
    """Whether the kernel limits memory and processes."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What an agent offers: everything that decides whether a job fits, and nothing else. Agents with equal
    offers are served by one claim."""

    pool: str
    labels: tuple[tuple[str, str], ...]
    abilities: tuple[Ability, ...]
    slot_cpu: float = 0.0
    """One slot's share; 0: not told, and not compared."""
    slot_memory: int = 0


# `any` never means host: running without a sandbox is asked for by name.
_ANY = ("bubblewrap", "docker")
_NAMED = 3


def differences(requirement: Requirement, offer: Offer) -> tuple[str, ...]:
    """What stands between a job and an agent, each as a clause; empty: it fits."""
    found = []
    if requirement.pool != offer.pool:
        found.append(f"it is in pool `{offer.pool}`, not `{requirement.pool}`")
    labels = dict(offer.labels)
    for label, value in requirement.labels:
        if label not in labels:
            found.append(f"it has no label `{label}`")
        elif labels[label] != value:
            found.append(f"its `{label}` is `{labels[label]}`, not `{value}`")
    if clause := _sandbox_difference(requirement, offer):
        found.append(clause)
    if offer.slot_cpu and requirement.cpu > offer.slot_cpu:
        found.append(f"a slot of it has {offer.slot_cpu:g} cores, not {requirement.cpu:g}")
    if offer.slot_memory and requirement.memory > offer.slot_memory:
        found.append(f"a slot of it has {offer.slot_memory >> 20} MiB, not {requirement.memory >> 20}")
    return tuple(found)


def _sandbox_difference(requirement: Requirement, offer: Offer) -> str:
    kinds = _ANY if requirement.sandbox == "any" else (requirement.sandbox,)
    abilities = [ability for ability in offer.abilities if ability.kind in kinds]
    fitting = [ability for ability in abilities if requirement.network in ability.networks]
    if any(ability.hard_limits or not requirement.hard_limits for ability in fitting):
        return ""
    if fitting:
        return f"its {fitting[0].kind} sandbox cannot hold a job to the `resources` that it asks for"
    usable = [ability for ability in abilities if ability.networks]
    if usable:
        return f"its {usable[0].kind} sandbox has no `network: {requirement.network}`"
    wanted = "sandbox" if requirement.sandbox == "any" else f"{requirement.sandbox} sandbox"
    reasons = "; ".join(ability.why_not for ability in abilities if ability.why_not)
    return f"it has no {wanted}" + (f" ({reasons})" if reasons else "")


def fits(requirement: Requirement, offer: Offer) -> bool:
    """Whether the agent can take the job."""
    return not differences(requirement, offer)


def unschedulable(requirement: Requirement, offers: Mapping[str, Offer]) -> str:
    """Why no agent can take it, with the nearest agent and what differs; empty: at least one can.

    `offers` maps the names of the agents that are there to what they offer.
    """
    if not offers:
        return f"no agent is connected: start one with `headrace agent --pool {requirement.pool}`"
    nearest: tuple[str, Sequence[str]] | None = None
    for name in sorted(offers):
        clauses = differences(requirement, offers[name])
        if not clauses:
            return ""
        if nearest is None or len(clauses) < len(nearest[1]):
            nearest = (name, clauses)
    assert nearest is not None
    return f"no agent fits; the nearest is `{nearest[0]}`: {', and '.join(nearest[1])}"


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the connected agents offer, by name: those that take jobs, those drained by a person, those that leave,
    and those that are not relied on."""

    working: Mapping[str, Offer]
    drained: Mapping[str, Offer] = field(default_factory=dict)
    leaving: Mapping[str, Offer] = field(default_factory=dict)
    quarantined: Mapping[str, Offer] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why jobs of a class are not taken; an empty sentence: they can be."""

    sentence: str = ""
    unschedulable: bool = False
    """Whether nobody could take them as things are: that is borne until the queue timeout."""
    hopeless: bool = False
    """Whether that will not change while the fleet stays what it is."""


def reason(requirement: Requirement, fleet: Fleet, *, paused: bool) -> Reason:
    """Why a class waits though it is queued. What a person did on purpose (a pause, a drain) fails nothing."""
    if paused:
        return Reason(f"pool `{requirement.pool}` is paused: `headrace pools resume {requirement.pool}`")
    if _fitting(requirement, fleet.working):
        return Reason()
    if names := _fitting(requirement, fleet.drained):
        mends = ", ".join(f"`headrace drain {name} --undo`" for name in names[:_NAMED])
        return Reason(f"{_who_fits(names)} draining: {mends}")
    if names := _fitting(requirement, fleet.leaving):
        shown = ", ".join(f"`{name}`" for name in names[:_NAMED])
        return Reason(f"{_who_fits(names)} leaving: {shown}", unschedulable=True)
    if names := _fitting(requirement, fleet.quarantined):
        shown = ", ".join(f"`{name}`" for name in names[:_NAMED])
        mend = "`headrace agents` says why, and what to do"
        return Reason(f"{_who_fits(names)} quarantined: {shown}; {mend}", unschedulable=True, hopeless=True)
    offers = {**fleet.quarantined, **fleet.leaving, **fleet.drained, **fleet.working}
    return Reason(unschedulable(requirement, offers), unschedulable=True, hopeless=bool(offers))


def _fitting(requirement: Requirement, offers: Mapping[str, Offer]) -> list[str]:
    return [name for name in sorted(offers) if fits(requirement, offers[name])]


def _who_fits(names: Sequence[str]) -> str:
    return "the agent that fits is" if len(names) == 1 else "the agents that fit are"
