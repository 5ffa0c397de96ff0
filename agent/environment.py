"""What a step finds in its environment, and what steps say in files. Pure.

Precedence: step over what earlier steps wrote to `$HEADRACE_ENV` over job, stage, pipeline over the image's; our own
`HEADRACE_*` over all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from headrace.v1 import common_pb2 as pb

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = "HEADRACE_"
ENV_LIMIT = 1 << 20
"""Bytes of one `$HEADRACE_ENV` file."""
OUTPUT_LIMIT = 16 << 20
"""Bytes of a job's outputs together, and so of one `$HEADRACE_OUTPUT` file."""
VALUE_LIMIT = 1 << 20
"""Bytes of one output."""
BOTH_LIMITS = f"one output holds up to {VALUE_LIMIT:,} bytes, and all outputs of a job together {OUTPUT_LIMIT:,}"


class BadFile(Exception):
    """A file in which a step says something is wrong; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Places:
    """Paths as a step sees them."""

    workspace: str
    say: str
    """The folder for what the job has to say."""


def of_job(spec: pb.JobSpec, attempt_try: int, places: Places, fencing_token: int) -> dict[str, str]:
    """The variables that Headrace itself sets for every step of a job."""
    found = {
        "HEADRACE": "true",
        "HEADRACE_RUN_ID": str(spec.run_id),
        "HEADRACE_RUN_URL": spec.run_url,
        "HEADRACE_JOB_ID": str(spec.job_id),
        "HEADRACE_ATTEMPT": str(attempt_try),
        "HEADRACE_PROJECT": spec.project,
        "HEADRACE_PIPELINE_NAME": spec.pipeline,
        "HEADRACE_STAGE": spec.stage,
        "HEADRACE_JOB": spec.job,
        "HEADRACE_COMMIT": spec.source.commit,
        "HEADRACE_BRANCH": spec.source.branch,
        "HEADRACE_TAG": spec.source.tag,
        "HEADRACE_EVENT": spec.event,
        "HEADRACE_WORKSPACE": places.workspace,
        "HEADRACE_SHARD": "1",
        "HEADRACE_SHARDS": "1",
        **spec.given_env,
    }
    if spec.environment:
        found["HEADRACE_FENCING_TOKEN"] = str(fencing_token)
    return found


def of_step(
    base: Mapping[str, str],
    job: Mapping[str, str],
    own: Mapping[str, str],
    *,
    ours: Mapping[str, str],
    say: str,
    files: Files,
) -> dict[str, str]:
    """All that one step finds. `base`: the image's, `job`: the job's and what earlier steps exported, `own`: the
    step's, `ours`: `of_job`, `say`: the folder of its files."""
    return {
        **base,
        "CI": "true",
        **job,
        **own,
        **ours,
        "HEADRACE_OUTPUT": f"{say}/{files.output}",
        "HEADRACE_ENV": f"{say}/{files.env}",
        "HEADRACE_PIPELINE": f"{say}/{files.pipeline}",
    }


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one try of a step; each has its own, so that a later one finds nothing of an earlier one."""

    step: int
    attempted: int = 1
    """Which try: from 1."""

    @property
    def output(self) -> str:
        """Name of the file behind `$HEADRACE_OUTPUT`."""
        return f"output-{self._mark}"

    @property
    def env(self) -> str:
        """Name of the file behind `$HEADRACE_ENV`."""
        return f"env-{self._mark}"

    @property
    def pipeline(self) -> str:
        """Name of the file behind `$HEADRACE_PIPELINE`."""
        return f"pipeline-{self._mark}"

    @property
    def _mark(self) -> str:
        return str(self.step) if self.attempted == 1 else f"{self.step}-{self.attempted}"


def parse(data: bytes, what: str) -> dict[str, str]:
    """`name=value` lines and `name<<END` blocks. Raises `BadFile`; `what` is the variable's name, for people."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadFile(f"${what} is not UTF-8 at byte {error.start}.") from error
    if "\0" in text:
        raise BadFile(f"${what} holds a NUL byte.")
    found: dict[str, str] = {}
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        line, number = lines[at], at + 1
        at += 1
        if not line.strip():
            continue
        name, sign, rest = re.match(r"([^=<]*)(=|<<)?(.*)", line, re.DOTALL).groups()  # type: ignore[union-attr]  # always matches
        if sign is None or not _NAME.fullmatch(name):
            raise BadFile(f"${what} line {number} is neither `name=value` nor `name<<END`: {line[:60]!r}.")
        if sign == "<<":
            end = rest.strip()
            try:
                close = lines.index(
                    end or "\n", at
                )  # no line holds a line feed: a block without an end word has no end
            except ValueError:
                raise BadFile(f"${what} line {number}: the block of {name} has no end {end!r}.") from None
            rest, at = "\n".join(lines[at:close]), close + 1
        found[name] = rest
    return found


def parse_env(data: bytes) -> dict[str, str]:
    """What a step wrote to `$HEADRACE_ENV`. Raises `BadFile`."""
    found = parse(data, "HEADRACE_ENV")
    for name in found:
        if name.startswith(_OURS):
            raise BadFile(f"$HEADRACE_ENV may not set {name}: names that begin with {_OURS} are Headrace's own.")
    return found


def parse_output(data: bytes) -> dict[str, str]:
    """What a step wrote to `$HEADRACE_OUTPUT`. Raises `BadFile`."""
    found = parse(data, "HEADRACE_OUTPUT")
    for name, value in found.items():
        if (size := len(value.encode())) > VALUE_LIMIT:
            raise BadFile(f"Output {name} has {size:,} bytes; {BOTH_LIMITS}.")
    return found


def check_together(outputs: Iterable[Mapping[str, str]]) -> None:
    """Raises `BadFile` when the outputs of a job's steps have too many bytes together."""
    size = sum(len(value.encode()) for each in outputs for value in each.values())
    if size > OUTPUT_LIMIT:
        raise BadFile(f"The outputs of the job's steps have {size:,} bytes; {BOTH_LIMITS}.")
