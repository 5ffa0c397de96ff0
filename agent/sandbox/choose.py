"""Which sandbox serves a job. Pure: what the job asks and what this agent can do in, a choice out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.problems import Cause, JobProblem
from agent.sandbox.protocol import Ability, Limits
from headrace.pipeline.plan import Network, SandboxKind


@dataclass(frozen=True, slots=True)
class Wish:
    """What a job asks of its sandbox."""

    kind: SandboxKind
    image: str = ""
    network: Network = Network.FULL
    hard_limits: bool = False
    """It asks for an amount of cpu, memory or pids."""
    own_code: bool = False
    """The user's own code on the user's own machine."""
    services: bool = False
    """Containers stand beside it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A kind that this agent can serve the job with."""

    kind: SandboxKind
    image: str = ""
    """For docker: the job's, or the agent's default one."""
    note: str = ""
    """One line for the job's log when it runs with less than a reader would expect."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What this agent has."""

    abilities: Mapping[SandboxKind, Ability]
    default_image: str = ""
    """What jobs without image run in where docker serves them; empty: docker serves none of those."""
    host_allowed: bool = False
    """The agent's own settings let any job run on the host."""
    slot: Limits = field(default_factory=Limits)
    """One slot's share."""


def choose(wish: Wish, offer: Offer) -> Choice:
    """The sandbox for a job, by contracts: an image needs docker; without image and sandbox bubblewrap,
    else docker with the default image, else, for the user's own code alone, the host.

    Raises `JobProblem` (REFUSED) with the sentence that says what differs.
    """
    if wish.image and wish.kind not in (SandboxKind.ANY, SandboxKind.DOCKER):
        raise _refused(f"`image` needs docker, but the job says `sandbox: {wish.kind}`: leave one of the two out")
    if wish.image:
        return _checked(wish, offer, Choice(SandboxKind.DOCKER, wish.image))
    if wish.kind is not SandboxKind.ANY:
        return _named(wish, offer)
    reasons = []
    for choice in (Choice(SandboxKind.BUBBLEWRAP), Choice(SandboxKind.DOCKER, offer.default_image)):
        why_not = _why_not(wish, offer, choice)
        if not why_not:
            return choice
        reasons.append(why_not)
    if wish.own_code and wish.network is Network.FULL and not (wish.services or wish.hard_limits):
        return Choice(SandboxKind.HOST, note=f"running without a sandbox, as yourself, because {reasons[0]}")
    raise _refused("; ".join(reasons))


def _named(wish: Wish, offer: Offer) -> Choice:
    if wish.kind is SandboxKind.HOST and not offer.host_allowed:
        raise _refused("this agent's settings do not let jobs run on the host")
    image = offer.default_image if wish.kind is SandboxKind.DOCKER else ""
    return _checked(wish, offer, Choice(wish.kind, image))


def _checked(wish: Wish, offer: Offer, choice: Choice) -> Choice:
    why_not = _why_not(wish, offer, choice)
    if why_not:
        raise _refused(why_not)
    return choice


def _why_not(wish: Wish, offer: Offer, choice: Choice) -> str:
    """Why `choice` cannot serve the job; empty: it can."""
    if wish.services and choice.kind is not SandboxKind.DOCKER:
        return f"services are containers on a network of the job's own: they need docker, and {choice.kind} is not it"
    ability = offer.abilities.get(choice.kind)
    if ability is None:
        return f"this agent has no {choice.kind} sandbox"
    if ability.why_not:
        return ability.why_not
    if choice.kind is SandboxKind.DOCKER and not choice.image:
        return "the job names no image, and this agent has no default one for docker"
    if wish.network not in ability.networks:
        return f"{choice.kind} cannot give a job `network: {wish.network}` on this agent"
    if wish.hard_limits and not ability.hard_limits:
        return f"{choice.kind} cannot enforce limits on this agent, and the job asks for an amount of resources"
    return ""


def _refused(sentence: str) -> JobProblem:
    return JobProblem(Cause.REFUSED, sentence)
