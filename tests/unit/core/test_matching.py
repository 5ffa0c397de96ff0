"""Which agent can take which job, and the sentence when none can."""

from coordinator.core.matching import Ability, Offer, Requirement, fits, unschedulable

BWRAP = Ability("bubblewrap", frozenset({"full", "none"}))
NO_DOCKER = Ability("docker", frozenset(), "no engine answers")


def need(**changes):
    return Requirement(**({"pool": "default", "labels": (), "sandbox": "any", "network": "full"} | changes))


def offer(pool="default", labels=(), abilities=(BWRAP, NO_DOCKER)):
    return Offer(pool, labels, abilities)


def test_a_job_that_asks_for_nothing_runs_in_any_sandbox_but_never_on_the_bare_host():
    """Running without a sandbox is asked for by name."""
    assert fits(need(), offer())
    assert not fits(need(), offer(abilities=(Ability("host", frozenset({"full"})),)))
    assert fits(need(sandbox="host"), offer(abilities=(Ability("host", frozenset({"full"})),)))


def test_labels_must_have_the_very_values_that_are_required():
    """A missing label and a wrong one are different mistakes."""
    arm = need(labels=(("arch", "arm64"),))
    assert fits(arm, offer(labels=(("arch", "arm64"), ("disk", "ssd"))))
    assert not fits(arm, offer(labels=(("arch", "amd64"),)))
    assert not fits(arm, offer())


def test_the_sentence_names_the_nearest_agent_and_what_differs():
    """Who is paged must see at a glance what is missing."""
    arm = need(labels=(("arch", "arm64"), ("gpu", "yes")), sandbox="docker")
    sentence = unschedulable(arm, {"far": offer(pool="other"), "near": offer(labels=(("arch", "arm64"),))})
    assert "`near`" in sentence
    assert "no label `gpu`" in sentence
    assert "no engine answers" in sentence


def test_an_empty_fleet_is_told_apart_from_one_that_does_not_fit():
    """The mend is another: start an agent."""
    assert "no agent is connected" in unschedulable(need(), {})
    assert unschedulable(need(), {"a": offer()}) == ""
