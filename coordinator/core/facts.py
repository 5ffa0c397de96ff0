"""What expressions see of a run while it goes on: `needs` of a job, `outputs` for a stage."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.core.states import JobState

MOST_GIVEN = 8 << 20
"""Bytes of `needs` that a job's agent is told: they go to it in one message, beside the job itself."""
_WORST = (JobState.FAILED, JobState.CANCELED, JobState.SKIPPED, JobState.PASSED)


@dataclass(frozen=True, slots=True)
class Ended:
    """A dependency that has ended. `cell`: JSON, empty for a job that is no copy; `outputs`: JSON, empty for none."""

    name: str
    state: JobState
    cell: str = ""
    outputs: str = ""
    expands: bool = False
    """It stands for its cells."""


def needs_of(dependencies: Iterable[Ended]) -> dict[str, Any]:
    """`needs` as expressions see it: outcome and outputs by name; of a matrix its cells."""
    found: dict[str, Any] = {}
    for each in dependencies:
        # One that is skipped now may have run before a retry: that was another time.
        outputs = json.loads(each.outputs) if each.outputs and each.state is not JobState.SKIPPED else {}
        if not each.cell and not each.expands:
            found[each.name] = {"outcome": each.state.value, "outputs": outputs}
            continue
        of = found.setdefault(each.name, {"outcome": JobState.PASSED.value, "cells": []})
        if not each.expands:
            matrix = json.loads(each.cell).get("matrix", {})
            of["cells"].append({"matrix": matrix, "outcome": each.state.value, "outputs": outputs})
        of["outcome"] = _worst(JobState(of["outcome"]), each.state).value
    return found


def _worst(one: JobState, other: JobState) -> JobState:
    return next((worst for worst in _WORST if worst in {one, other}), JobState.PASSED)


def given(needs: Mapping[str, Any]) -> bytes:
    """`needs` for a job's agent as JSON; where they fit into no message, a JSON text that says so."""
    told = json.dumps(needs).encode()
    if len(told) <= MOST_GIVEN:
        return told
    names = ", ".join(f"`{name}`" for name in list(needs)[:5])
    sentence = f"the outputs of {names} take {len(told):,} bytes together: a job is given up to {MOST_GIVEN:,}"
    return json.dumps(f"{sentence}; hand over larger ones as artifacts").encode()


def outputs_of(jobs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """`outputs` as stages see it, from (name, outputs as JSON) of earlier jobs."""
    return {name: json.loads(outputs) for name, outputs in jobs if outputs}
