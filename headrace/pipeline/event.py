"""What a run is made for: the event, its parameters, and what expressions see of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.pipeline.model import ParameterDef, Pipeline
from headrace.pipeline.problems import Place, Report, shown
from headrace.pipeline.triggers import parsed, what_it_takes


@dataclass(frozen=True, slots=True)
class PullRequest:
    """The pull request of an event. `head` and `base` are branches."""

    number: int
    head: str
    base: str


@dataclass(frozen=True, slots=True)
class Event:
    """What a run is made for. `params` are the parameters of a run by hand, as texts; empty texts: there is none."""

    type: str = "manual"
    branch: str = ""
    tag: str = ""
    commit: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    pull_request: PullRequest | None = None
    changed: tuple[str, ...] | None = None
    """Paths that the event changed; None: not known, and every path filter holds."""


def static_values(event: Event, params: Mapping[str, Any]) -> dict[str, Any]:
    """What expressions see of an event. In a pull request there is neither branch nor tag."""
    about: dict[str, Any] = {"type": event.type}
    pull = event.pull_request
    if pull is not None:
        about["pull_request"] = {"number": pull.number, "head": pull.head, "base": pull.base}
    return {
        "event": about,
        "branch": "" if pull else event.branch,
        "tag": "" if pull else event.tag,
        "commit": event.commit,
        "params": dict(params),
    }


def parameters_of(pipeline: Pipeline, event: Event, report: Report, place: Place) -> dict[str, Any]:
    """The parameters with their types, defaults filled in; mistakes are noted at `place`.

    An event that is no run by hand gives none: each has its default then, or null.
    """
    declared = {each.name: each for each in (pipeline.triggers.parameters if pipeline.triggers else ())}
    for name in event.params:
        if name not in declared:
            if not declared:
                listed = ", ".join(shown(each) for each in event.params)
                report.add(place, f"the pipeline declares no parameters, but {listed} was given; leave it out")
                return {}
            hint = report.suggestion(name, list(declared)) or f"; it has {', '.join(map(shown, declared))}"
            report.add(place, f"the pipeline has no parameter {shown(name)}{hint}")
    return {name: _value(each, event, report) for name, each in declared.items()}


def _value(parameter: ParameterDef, event: Event, report: Report) -> Any:
    text = event.params.get(parameter.name)
    if text is None:
        if parameter.default is None and event.type == "manual":
            report.add(parameter.place, f"the parameter {shown(parameter.name)} has no default and was not given")
        return parameter.default
    value = parsed(parameter, text)
    if value is None:
        takes = what_it_takes(parameter.type, parameter.options)
        report.add(parameter.place, f"the parameter {shown(parameter.name)} {takes}, not {shown(text)}")
    return value
