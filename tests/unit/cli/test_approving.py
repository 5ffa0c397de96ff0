"""Which stage a person decides about, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.cli.approve import outcome, the_stage
from headrace.client.types import Approval, Decision, Run, RunState, Source, Stage
from headrace.errors import BadInput, Conflict, NotFound

ASKED = Approval("asked", "waits for an approval: Ship it?", 1, (), None)


def run(*stages: Stage, state: RunState = RunState.BLOCKED) -> Run:
    return Run(7, "demo", "demo", state, "push", Source("r", "c" * 40), {}, "", None, None, None, 3, stages)


def asked(index: int, name: str) -> Stage:
    return Stage(index, name, "", approval=ASKED)


def test_the_stage_that_waits_need_not_be_named():
    """There is one nearly always."""
    found = run(Stage(0, "build", ""), asked(1, "release"))
    assert the_stage(found, "").name == "release"
    assert the_stage(found, "release").name == "release"


def test_among_several_stages_that_wait_one_has_to_be_named():
    """A guess could ship to production what was meant for staging."""
    with pytest.raises(BadInput, match="name one of eu, us with --stage"):
        the_stage(run(asked(0, "eu"), asked(1, "us")), "")


@pytest.mark.parametrize(
    ("found", "wanted", "error", "words"),
    [
        (run(Stage(0, "build", "")), "", Conflict, "waits for no approval: it is blocked"),
        (run(asked(0, "release"), state=RunState.CANCELED), "", Conflict, "waits for no approval: it is canceled"),
        (run(asked(0, "a"), Stage(1, "b", "")), "b", Conflict, "stage b of run 7 waits for no approval: a does"),
        (run(asked(0, "a")), "x", NotFound, "has no stage x: it has a"),
    ],
)
def test_a_decision_that_nobody_waits_for_is_refused_in_one_sentence(found, wanted, error, words):
    """What is there instead stands in the sentence."""
    with pytest.raises(error, match=words):
        the_stage(found, wanted)


def test_what_has_come_of_a_decision_is_said():
    """Whether it was the last that was needed is what the person wants to know."""
    one = replace(ASKED, count=2, decisions=(Decision("ana", approved=True, comment=""),))
    assert outcome(run(Stage(0, "a", "", approval=one)), "a", reject=False) == "run 7: the stage a has 1 of 2 approvals"
    let_in = run(Stage(0, "a", "", approval=replace(one, state="open")), state=RunState.RUNNING)
    assert outcome(let_in, "a", reject=False) == "run 7: the stage a is approved, the run is running"
    assert outcome(let_in, "a", reject=True) == "run 7: the stage a is rejected, the run is running"
