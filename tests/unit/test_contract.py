"""The wire contract says of every method whether it may be repeated, and what fences it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROTO = Path(__file__).resolve().parents[2] / "proto/headrace/v1"
WORDS = ("idempotent", "may be repeated", "resumed")
METHOD = re.compile(r"((?:^ *//.*\n)*)^ *rpc (\w+)\(", re.MULTILINE)


def methods() -> dict[str, str]:
    """`service.method` -> the comment above it, on one line."""
    found = {}
    for path in sorted(PROTO.glob("*.proto")):
        for comment, name in METHOD.findall(path.read_text("utf-8")):
            found[f"{path.stem}.{name}"] = re.sub(r"\s*//\s*", " ", comment).strip()
    return found


@pytest.mark.parametrize("name", sorted(methods()))
def test_a_method_says_whether_it_may_be_repeated(name: str) -> None:
    """Whoever writes a client has lost an answer at some time, and must know what to do then."""
    assert any(word in methods()[name].lower() for word in WORDS), f"say in its comment one of {', '.join(WORDS)}"


@pytest.mark.parametrize("name", sorted(name for name, comment in methods().items() if "Agents." in comment))
def test_a_method_of_agents_says_what_fences_it(name: str) -> None:
    """An attempt that was given to somebody else must not get or change anything any more."""
    assert "fenced" in methods()[name].lower()


def test_every_message_of_an_agents_session_is_named_in_its_rules() -> None:
    """One stream carries them all: which of them may be sent again after a cut is said of each by name."""
    text = (PROTO / "agent.proto").read_text("utf-8")
    (body,) = re.findall(r"message SessionRequest \{\s*oneof message \{(.*?)\}", text, re.DOTALL)
    kinds = {kind.removesuffix("s") for kind in re.findall(r"^\s*(\w+) \w+ = \d+;", body, re.MULTILINE)}
    rules = methods()["agent.Session"]
    assert {kind for kind in kinds if kind not in rules} == set()
