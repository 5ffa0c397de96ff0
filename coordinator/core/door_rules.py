"""The rules of a guarded stage as text, for whoever keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from coordinator.core.stages import Decision
from headrace.pipeline.plan import Approval
from headrace.pipeline.values import Expression, Template, Text


def rules_to_json(condition: Expression | None, approval: Approval | None, env: Mapping[str, str] | None = None) -> str:
    """A stage's condition and approval, and the variables that both may look at."""
    found: dict[str, Any] = {"env": dict(env)} if env else {}
    if condition is not None:
        found["if"] = [condition.text, condition.place]
    if approval is not None:
        found["approval"] = [list(approval.whom), approval.count, approval.timeout_ms, text_to_data(approval.message)]
    return json.dumps(found)


def rules_from_json(text: str) -> tuple[Expression | None, Approval | None]:
    """What `rules_to_json` wrote."""
    found = json.loads(text) if text else {}
    condition, approval = found.get("if"), found.get("approval")
    return (
        Expression(*condition) if condition else None,
        Approval(tuple(approval[0]), approval[1], approval[2], text_from_data(approval[3])) if approval else None,
    )


def env_from_json(text: str) -> dict[str, str]:
    """The variables that `rules_to_json` wrote."""
    found: dict[str, str] = json.loads(text).get("env", {}) if text else {}
    return found


def text_to_data(text: Text) -> Any:
    """A text, or a template as a list of its parts."""
    if isinstance(text, str):
        return text
    return [each if isinstance(each, str) else [each.text, each.place] for each in text.parts]


def text_from_data(data: Any) -> Text:
    """What `text_to_data` gave."""
    if isinstance(data, str):
        return data
    return Template(tuple(each if isinstance(each, str) else Expression(*each) for each in data))


def decisions_to_json(decisions: tuple[Decision, ...]) -> str:
    """What people have decided, in order."""
    return json.dumps([[each.person, each.approved, each.comment] for each in decisions])


def decisions_from_json(text: str) -> tuple[Decision, ...]:
    """What `decisions_to_json` wrote."""
    return tuple(Decision(*each) for each in json.loads(text))
