"""The corpus: pipeline files beside what they must lead to. A newcomer adds a case by adding two files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.pipeline import Event, PipelineError, expand, load, plan_to_json
from headrace.pipeline.sharing import Read

CORPUS = Path(__file__).parents[2] / "pipelines"
BAD = sorted((CORPUS / "bad").glob("*.yml"))
GOOD = sorted((CORPUS / "good").glob("*.yml"))


def reader(file: Path) -> Read:
    """The repository of a case: the folder that bears its name."""

    def read(path: str) -> bytes | None:
        found = file.with_suffix("") / path
        return found.read_bytes() if found.is_file() else None

    return read


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_a_bad_file_is_refused_with_exactly_these_sentences(file: Path) -> None:
    """The sentences are the interface: a change of one must be seen by whoever reviews it."""
    with pytest.raises(PipelineError) as refused:
        load(file.read_bytes(), file.name, reader(file))
    assert f"{refused.value}\n" == file.with_suffix(".expected").read_text()


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_a_good_file_makes_exactly_this_plan(file: Path) -> None:
    """Defaults, precedence and normal forms, seen as a whole."""
    plan = expand(load(file.read_bytes(), file.name, reader(file)), Event())
    assert plan_to_json(plan) == json.loads(file.with_suffix(".json").read_text())


def test_every_expectation_belongs_to_a_file() -> None:
    """A renamed case must not leave an expectation behind that nobody looks at."""
    assert {each.stem for each in BAD} == {each.stem for each in (CORPUS / "bad").glob("*.expected")}
    assert {each.stem for each in GOOD} == {each.stem for each in (CORPUS / "good").glob("*.json")}
    assert len(BAD) >= 130
