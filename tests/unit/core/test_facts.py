"""What a job is told of its needs."""

from __future__ import annotations

import json

from coordinator.core.facts import MOST_GIVEN, Ended, given, needs_of
from coordinator.core.states import JobState


def test_needs_that_fit_into_no_message_become_a_sentence():
    """A message that the wire refuses would end the session, and be sent again by the next one, for ever."""
    value = json.dumps({"big": "x" * (1 << 20)})
    few = needs_of(Ended(f"j{n}", JobState.PASSED, outputs=value) for n in range(7))
    assert json.loads(given(few)) == few
    many = needs_of(Ended(f"j{n}", JobState.PASSED, outputs=value) for n in range(9))
    sentence = json.loads(given(many))
    assert isinstance(sentence, str)
    assert sentence.startswith("the outputs of `j0`, `j1`, `j2`, `j3`, `j4` take 9,437,")
    assert f"up to {MOST_GIVEN:,}" in sentence
