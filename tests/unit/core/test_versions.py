"""Which agents a coordinator serves."""

import pytest

from coordinator.core.versions import why_not_served


@pytest.mark.parametrize(
    "agent",
    ["1.6.0", "1.6.9", "1.5.0", "1.4.0", "1.4.0rc1", "1.7.0", "1.99", "1.6.1.dev3+g1234abc", "1.6+local.build"],
)
def test_an_agent_within_two_minors_or_newer_is_served(agent: str) -> None:
    """An upgrade goes through a fleet for days; a build of one's own is a build like any other."""
    assert why_not_served(agent, "1.6.2") == ""


def test_an_older_agent_is_told_both_versions_and_what_to_install() -> None:
    """Who reads it stands at the agent's machine."""
    assert why_not_served("1.3.9", "1.6.2+corp") == (
        "the agent is version 1.3.9, which this coordinator of version 1.6.2+corp no longer serves: "
        "install headrace 1.4 or newer on the agent's machine and start the agent again"
    )


def test_an_agent_of_a_newer_major_is_told_to_have_the_coordinator_upgraded_first() -> None:
    """Coordinators first: an agent may rely on what they do not know yet."""
    assert why_not_served("2.0.0", "1.6.2") == (
        "the agent is version 2.0.0, which this coordinator of version 1.6.2 does not know yet: "
        "upgrade the coordinator first, or install headrace 1.6 on the agent's machine"
    )


def test_an_older_major_is_not_served() -> None:
    """How many minors lie between them is not known."""
    assert "install headrace 2.0 or newer" in why_not_served("1.99", "2.1")


@pytest.mark.parametrize("agent", ["", "unknown", "v one", "1.6.2-really-mine!"])
def test_what_is_no_version_is_said_to_be_none(agent: str) -> None:
    """Half an installation, or something that is no agent."""
    assert why_not_served(agent, "1.6.2").startswith(f"the agent says version {agent!r}, which is none")


def test_the_first_minors_have_nobody_behind_them() -> None:
    """0.1 serves 0.0."""
    assert why_not_served("0.0.1", "0.1.0") == ""
