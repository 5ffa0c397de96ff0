"""Regular expressions: RE2's, searched in linear time. Setting one up is what may cost, so its size is bounded."""

from __future__ import annotations

import re

from headrace.pipeline.expressions import ExpressionFailed, evaluate
from headrace.pipeline.problems import Report, shown

MOST_OF_ONE, MOST_OF_A_FILE = 10_000, 100_000
"""Weight, of which a thousand takes some 7 ms."""
_REPEAT = re.compile(r"\{([0-9]{1,9})(?:,([0-9]{0,9}))?\}")
_CLASS_WEIGHT, _OWN_WEIGHT = 1_000, 100


def weight_of(pattern: str) -> int:
    """What setting a pattern up costs at most, in characters: repetitions multiply, a class of Unicode is large."""
    weight = len(pattern) + _CLASS_WEIGHT * (pattern.count("\\p") + pattern.count("\\P")) + _OWN_WEIGHT
    for found in _REPEAT.finditer(pattern):
        weight *= max(1, int(found[2] or found[1]))
        if weight > MOST_OF_A_FILE:
            break
    return weight


def why_no_pattern(pattern: str) -> str:
    """What is wrong with a regular expression; empty: nothing."""
    if weight_of(pattern) > MOST_OF_ONE:
        return "it repeats too much"
    try:
        evaluate("''.matches(pattern)", {"pattern": pattern})
    except ExpressionFailed as error:
        return str(error).removeprefix("invalid regular expression: ")
    return ""


def refused_pattern(pattern: str, report: Report) -> str:
    """The sentence for a pattern that is none, or that makes those of the file too many; empty: it may stand."""
    if (weight := weight_of(pattern)) <= MOST_OF_ONE:
        report.patterns += weight
    if report.patterns > MOST_OF_A_FILE:
        return "the patterns of the file are too many, or repeat too much, all together"
    why = why_no_pattern(pattern)
    return f"{shown(pattern)} is no pattern: {why}" if why else ""
