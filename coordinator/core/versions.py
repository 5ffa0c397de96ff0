"""Which agents a coordinator can serve, by their versions (PEP 440)."""

from __future__ import annotations

from packaging.version import InvalidVersion, Version

OLDER = 2
"""How many minor versions an agent may be behind."""


def why_not_served(agent: str, coordinator: str) -> str:
    """Why this coordinator cannot serve an agent of that version, with the mend; empty: it can.

    Pre-releases, local builds and patch levels make no difference, and a newer minor of the same major is served.
    """
    ours = Version(coordinator)
    try:
        its = Version(agent)
    except InvalidVersion:
        return f"the agent says version {agent[:40]!r}, which is none: install headrace {coordinator} on its machine"
    oldest = max(0, ours.minor - OLDER)
    if its.major > ours.major:
        return (
            f"the agent is version {agent}, which this coordinator of version {coordinator} does not know yet:"
            f" upgrade the coordinator first, or install headrace {ours.major}.{ours.minor} on the agent's machine"
        )
    if its.major < ours.major or its.minor < oldest:
        return (
            f"the agent is version {agent}, which this coordinator of version {coordinator} no longer serves:"
            f" install headrace {ours.major}.{oldest} or newer on the agent's machine and start the agent again"
        )
    return ""
