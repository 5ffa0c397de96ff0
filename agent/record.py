"""What the agent knows of one attempt, on disk, so that it goes on after a restart as if nothing had happened.

A little JSON, which `keeping.py` keeps. It holds the lease's token: 0600 in a 0700 folder, never in a sandbox.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from agent.outcome import Outcome
from agent.problems import Cause
from headrace.v1 import agent_pb2, common_pb2


class Phase(StrEnum):
    """How far the attempt has come. From `CLEANUP` on the outcome stands; `SETTLED`: nothing of the sandbox is left."""

    PREPARING = "preparing"
    STEPS = "steps"
    ARTIFACTS = "artifacts"
    CLEANUP = "cleanup"
    SETTLED = "settled"


@dataclass(slots=True)
class Record:
    """One attempt. Written after every change that a restart must know of."""

    attempt: int
    token: bytes
    attempt_try: int
    slot: int
    spec: common_pb2.JobSpec
    assigned_boot_ms: int
    phase: Phase = Phase.PREPARING
    started_boot_ms: int = 0
    """Boot clock when the first command could begin; 0: not yet. The job's timeout counts from here."""
    sandbox: str = ""
    """Kind of the sandbox that was chosen."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What preparing found out and the steps need: base environment, shells, paths."""
    needs: str = ""
    """`needs` as expressions see it: a JSON object; a JSON text says why not; empty: nothing asks for it."""
    env: dict[str, str] = field(default_factory=dict)
    """The job's variables that were left to the agent, evaluated."""
    exported: dict[str, str] = field(default_factory=dict)
    """Environment that steps wrote to `$HEADRACE_ENV`."""
    steps: list[common_pb2.StepResult] = field(default_factory=list)
    """Those that are over."""
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    """What steps wrote to `$HEADRACE_OUTPUT`, by the step's id and the output's name."""
    trying: common_pb2.StepResult | None = None
    """A step that failed and is to be tried again: how its last try ended."""
    again_boot_ms: int = 0
    """Boot clock when it is tried again."""
    placing: bool = False
    """A `use: artifact/…` step is under way: it cannot simply be done again."""
    cancel: str = ""
    """The sentence of a cancel that came; empty: none."""
    timed_out: bool = False
    """The job ran out of its time."""
    cleaning_until_boot_ms: int = 0
    """Boot clock when the steps that still run after that, or after a cancel, must be done; 0: none was begun."""
    told: agent_pb2.Ended = field(default_factory=agent_pb2.Ended)
    """What the outcome will tell beside itself: outputs, reports of tests, patterns found."""
    timings: dict[str, int] = field(default_factory=dict)
    reports: dict[str, agent_pb2.Report] = field(default_factory=dict)
    """Not yet answered, in order."""
    outcome: int = 0
    """`AttemptState` of the outcome; 0: none yet."""
    ended: Outcome | None = None
    """What it came to, from `ARTIFACTS` on: no restart may decide it anew."""
    aborted: bool = False
    """Somebody else has the job now, or nobody wants it: nothing is reported any more."""
    log_done: bool = False
    """The coordinator has the whole log, or does not want it."""
    damage: str = field(default="", compare=False)
    """Why this may not be the newest of it; empty: it is. Not written."""

    def to_json(self) -> str:
        """As it is written."""
        return json.dumps(
            {
                "attempt": self.attempt,
                "token": self.token.hex(),
                "attempt_try": self.attempt_try,
                "slot": self.slot,
                "spec": _text(self.spec.SerializeToString()),
                "assigned_boot_ms": self.assigned_boot_ms,
                "phase": self.phase.value,
                "started_boot_ms": self.started_boot_ms,
                "sandbox": self.sandbox,
                "facts": self.facts,
                "needs": self.needs,
                "env": self.env,
                "exported": self.exported,
                "steps": [_text(step.SerializeToString()) for step in self.steps],
                "outputs": self.outputs,
                "trying": None if self.trying is None else _text(self.trying.SerializeToString()),
                "again_boot_ms": self.again_boot_ms,
                "placing": self.placing,
                "cancel": self.cancel,
                "timed_out": self.timed_out,
                "cleaning_until_boot_ms": self.cleaning_until_boot_ms,
                "told": _text(self.told.SerializeToString()),
                "timings": self.timings,
                "reports": [_text(report.SerializeToString()) for report in self.reports.values()],
                "outcome": self.outcome,
                "ended": None if self.ended is None else [self.ended.cause, self.ended.sentence],
                "aborted": self.aborted,
                "log_done": self.log_done,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record that `to_json` wrote, also that of the version before. Raises ValueError or KeyError for
        anything else."""
        read: Mapping[str, Any] = json.loads(text)
        trying = read.get("trying")
        reports = [agent_pb2.Report.FromString(_bytes(each)) for each in read["reports"]]
        return cls(
            attempt=int(read["attempt"]),
            token=bytes.fromhex(read["token"]),
            attempt_try=int(read["attempt_try"]),
            slot=int(read["slot"]),
            spec=common_pb2.JobSpec.FromString(_bytes(read["spec"])),
            assigned_boot_ms=int(read["assigned_boot_ms"]),
            phase=Phase(read["phase"]),
            started_boot_ms=int(read["started_boot_ms"]),
            sandbox=read["sandbox"],
            facts=dict(read["facts"]),
            needs=read.get("needs", ""),
            env=dict(read.get("env", {})),
            exported=dict(read["exported"]),
            steps=[common_pb2.StepResult.FromString(_bytes(each)) for each in read["steps"]],
            outputs=dict(read.get("outputs", {})),
            trying=None if trying is None else common_pb2.StepResult.FromString(_bytes(trying)),
            again_boot_ms=int(read.get("again_boot_ms", 0)),
            placing=bool(read["placing"]),
            cancel=read["cancel"],
            timed_out=bool(read.get("timed_out", False)),
            cleaning_until_boot_ms=int(read.get("cleaning_until_boot_ms", 0)),
            told=agent_pb2.Ended.FromString(_bytes(read.get("told", ""))),
            timings=dict(read["timings"]),
            reports={report.id: report for report in reports},
            outcome=int(read["outcome"]),
            ended=_outcome(read.get("ended")),
            aborted=bool(read["aborted"]),
            log_done=bool(read["log_done"]),
        )


def _outcome(told: list[str] | None) -> Outcome | None:
    return None if told is None else Outcome(Cause(told[0]) if told[0] else None, told[1])


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
