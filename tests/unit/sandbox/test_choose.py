"""Which sandbox serves a job."""

from __future__ import annotations

import pytest

from agent.problems import Cause, JobProblem
from agent.sandbox.choose import Choice, Offer, Wish, choose
from agent.sandbox.protocol import Ability
from headrace.pipeline.plan import Network, SandboxKind

ANY, DOCKER, BUBBLEWRAP, HOST = SandboxKind.ANY, SandboxKind.DOCKER, SandboxKind.BUBBLEWRAP, SandboxKind.HOST
BOTH = frozenset(Network)


def able(kind: SandboxKind, networks: frozenset[Network] = BOTH, *, hard: bool = True, why_not: str = "") -> Ability:
    return Ability(kind, frozenset() if why_not else networks, hard, why_not)


def offer(*abilities: Ability, image: str = "debian:12", host_allowed: bool = False) -> Offer:
    return Offer({ability.kind: ability for ability in abilities}, image, host_allowed)


EVERYTHING = offer(able(DOCKER), able(BUBBLEWRAP), able(HOST, frozenset({Network.FULL})))
FORBIDDEN = able(BUBBLEWRAP, why_not="this machine does not let this user make user namespaces")


@pytest.mark.parametrize(
    ("wish", "given", "choice"),
    [
        (Wish(ANY), EVERYTHING, Choice(BUBBLEWRAP)),
        (Wish(ANY, "python:3"), EVERYTHING, Choice(DOCKER, "python:3")),
        (Wish(DOCKER, "python:3"), EVERYTHING, Choice(DOCKER, "python:3")),
        (Wish(DOCKER), EVERYTHING, Choice(DOCKER, "debian:12")),
        (Wish(ANY), offer(able(DOCKER)), Choice(DOCKER, "debian:12")),
        (Wish(ANY), offer(able(BUBBLEWRAP, frozenset({Network.NONE})), able(DOCKER)), Choice(DOCKER, "debian:12")),
        (Wish(ANY, hard_limits=True), offer(able(BUBBLEWRAP, hard=False), able(DOCKER)), Choice(DOCKER, "debian:12")),
        (Wish(HOST), offer(able(HOST, frozenset({Network.FULL})), host_allowed=True), Choice(HOST)),
    ],
)
def test_a_job_gets_the_sandbox_that_the_contracts_name(wish: Wish, given: Offer, choice: Choice) -> None:
    """An image needs docker; without one bubblewrap comes first."""
    assert choose(wish, given) == choice


@pytest.mark.parametrize(
    ("wish", "given", "sentence"),
    [
        (Wish(BUBBLEWRAP, "python:3"), EVERYTHING, "`image` needs docker"),
        (Wish(ANY, "python:3"), offer(able(BUBBLEWRAP)), "this agent has no docker sandbox"),
        (Wish(HOST), EVERYTHING, "do not let jobs run on the host"),
        (Wish(HOST, own_code=True), EVERYTHING, "do not let jobs run on the host"),
        (Wish(DOCKER), offer(able(DOCKER), image=""), "no default one for docker"),
        (Wish(BUBBLEWRAP), offer(able(BUBBLEWRAP, frozenset({Network.NONE}))), "cannot give a job `network: full`"),
        (Wish(ANY, hard_limits=True, own_code=True), offer(able(BUBBLEWRAP, hard=False)), "cannot enforce limits"),
        (Wish(BUBBLEWRAP, hard_limits=True), offer(able(BUBBLEWRAP, hard=False)), "cannot enforce limits"),
        (Wish(BUBBLEWRAP, own_code=True), offer(FORBIDDEN), "user namespaces"),
        (Wish(ANY), offer(FORBIDDEN), "user namespaces"),
        (Wish(ANY, network=Network.NONE, own_code=True), offer(FORBIDDEN), "user namespaces"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_difference(wish: Wish, given: Offer, sentence: str) -> None:
    """Never a weaker sandbox than was asked for."""
    with pytest.raises(JobProblem, match=sentence) as caught:
        choose(wish, given)
    assert caught.value.cause is Cause.REFUSED


def test_the_users_own_code_falls_back_to_the_host_and_says_so() -> None:
    """A local run on a machine without user namespaces must still work; nobody else's code may."""
    choice = choose(Wish(ANY, own_code=True), offer(FORBIDDEN))
    assert choice.kind is HOST
    assert "without a sandbox" in choice.note
    assert "user namespaces" in choice.note
