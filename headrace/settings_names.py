"""Which `HEADRACE_*` variables mean something: a misspelt one is an error, an unknown one worth a warning.

Pure: the variables and the names that a program knows are passed in. Other programs' variables land in the same
environment (a job's own, those that Kubernetes makes for a service called `headrace`): they are known here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

PREFIX = "HEADRACE_"

CLIENT = frozenset({"HEADRACE_URL", "HEADRACE_TOKEN", "HEADRACE_INSECURE", "HEADRACE_CA_FILE"})
"""What every client reads, and the agent too."""

OF_JOBS = frozenset(
    PREFIX + name
    for name in (
        "RUN_ID",
        "RUN_URL",
        "JOB_ID",
        "ATTEMPT",
        "PROJECT",
        "PIPELINE_NAME",
        "STAGE",
        "JOB",
        "COMMIT",
        "BRANCH",
        "TAG",
        "EVENT",
        "WORKSPACE",
        "SHARD",
        "SHARDS",
        "OUTPUT",
        "ENV",
        "PIPELINE",
        "FENCING_TOKEN",
    )
)
"""What a job finds in its environment: so that Headrace can run inside a job."""

_KUBERNETES = re.compile(
    r"HEADRACE_(?:\w+_)?(?:SERVICE_(?:HOST|PORT(?:_\w+)?)|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)
_NEAR = 2


@dataclass(frozen=True, slots=True)
class Findings:
    """One sentence each: `mistakes` end the program with exit code 2, `warnings` are said and passed over."""

    mistakes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def check(variables: Iterable[str], known: Collection[str], others: Collection[str] = ()) -> Findings:
    """Looks at the names of environment variables.

    `known`: the full names (`HEADRACE_POOL`) that this program reads. `others`: names that other programs of
    Headrace read, which are neither an error nor worth a word here; one that is near to them is misspelt all the same.
    """
    mistakes, warnings = [], []
    passed_over = {*known, *others, *OF_JOBS, *CLIENT}
    for name in sorted(set(variables)):
        if not name.startswith(PREFIX) or name in passed_over or _KUBERNETES.fullmatch(name):
            continue
        near = [each for each in sorted({*known, *others, *CLIENT}) if distance(name, each, _NEAR) <= _NEAR]
        if near:
            mistakes.append(f"{name} is not a setting: did you mean {' or '.join(near)}?")
        else:
            warnings.append(f"{name} is not a setting of Headrace and is ignored")
    return Findings(tuple(mistakes), tuple(warnings))


def distance(left: str, right: str, most: int) -> int:
    """How many letters to insert, drop, change or swap with their neighbour; anything over `most` is `most` + 1."""
    if abs(len(left) - len(right)) > most:
        return most + 1
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, one in enumerate(left, 1):
        before, last, row = row, before, [i]
        for j, other in enumerate(right, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (one != other))
            if i > 1 and j > 1 and one == right[j - 2] and left[i - 2] == other:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return min(row[-1], most + 1)
