"""The names of what is made for an attempt on the machine, so that a sweep finds it again.

A kernel interface has 15 bytes for its name: 2 for us, 5 for the agent, 8 for the attempt.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

PREFIX: Final = "hr"
"""Of every interface that leads to a job, whoever's: jobs may not reach any of them."""

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def checked(agent: str) -> str:
    """The agent's id, if it can stand in a path and in a firewall rule. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", agent):
        raise ValueError(f"an agent's id has letters, digits, dots and hyphens only, not {agent!r}")
    return agent


def agent_tag(agent: str) -> str:
    """Five hexadecimal digits for an agent's id."""
    return hashlib.blake2s(agent.encode(), digest_size=3).hexdigest()[:5]


def interface(agent: str, attempt: int) -> str:
    """The interface on the host's side that leads to the attempt's jobs; good for attempts below 36**8."""
    digits = ""
    while True:
        attempt, digit = divmod(attempt, 36)
        digits = _DIGITS[digit] + digits
        if attempt == 0:
            return f"{PREFIX}{agent_tag(agent)}{digits}"


def attempt_of_interface(agent: str, name: str) -> int | None:
    """The attempt whose interface this is, None if it is not one of this agent's."""
    own = f"{PREFIX}{agent_tag(agent)}"
    rest = name.removeprefix(own)
    if rest == name or not re.fullmatch(r"[0-9a-z]{1,8}", rest):
        return None
    return int(rest, 36)


def namespace(agent: str, attempt: int) -> str:
    """The network namespace of an attempt, as `ip netns` shows it."""
    return f"headrace-{agent_tag(agent)}-{attempt}"


def attempt_of_namespace(agent: str, name: str) -> int | None:
    """The attempt whose namespace this is, None if it is not one of this agent's."""
    rest = name.removeprefix(f"headrace-{agent_tag(agent)}-")
    return int(rest) if rest != name and rest.isdecimal() else None


def comment(kind: str, agent: str, attempt: int) -> str:
    """What every firewall rule of an attempt in a sandbox of that kind bears."""
    return f"headrace:{kind}:{agent}:{attempt}"
