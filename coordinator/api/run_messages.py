"""Rows of the store as clients see them: pure translation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from coordinator.api.agent_messages import cause_value
from coordinator.core.door_rules import decisions_from_json, rules_from_json
from coordinator.core.rules import Rules
from coordinator.core.rules import rules_from_json as job_rules
from coordinator.store.views import Row, RunView
from headrace.v1 import agent_pb2 as agents
from headrace.v1 import common_pb2 as common
from headrace.v1 import fleet_pb2 as fleet
from headrace.v1 import run_pb2 as wire

_TIMINGS = ("sandbox_ms", "checkout_ms", "steps_ms", "artifacts_ms")


def run_message(view: RunView) -> wire.Run:
    """A run as it is shown, with the jobs that are in the view, in the order of the file."""
    row = view.run
    source = common.Source.FromString(row["source"])
    # Cells that were added stand where the job stood that they are.
    stood = {job["key"]: job["place"] for job in view.jobs if job["id"] in view.expanded}
    jobs = [job for job in view.jobs if job["id"] not in view.expanded]
    jobs.sort(key=lambda each: (stood.get(each["name"], each["place"]), each["place"]))
    attempts = view.attempts or {}
    return wire.Run(
        id=row["id"],
        project=row["project"],
        pipeline=row["pipeline"],
        source=source,
        event=row["event"],
        state=common.RunState.Value(f"RUN_STATE_{row['state'].upper()}"),
        created_ms=_ms(row["created_at"]),
        started_ms=_ms(row["started_at"]),
        ended_ms=_ms(row["ended_at"]),
        sequence=row["sequence"],
        sentence=row["sentence"],
        parameters=row["parameters"],
        warnings=row["warned"],
        stages=[_stage_message(each) for each in view.stages],
        jobs=[job_message(job, attempts.get(job["id"], ())) for job in jobs],
    )


def _stage_message(row: Row) -> wire.Stage:
    _, approval = rules_from_json(row["rules"])
    made = wire.Stage(index=row["index"], name=row["name"], environment=row["environment"], url=row["url"])
    if approval is not None:
        decisions = [
            wire.Decision(person=each.person, approved=each.approved, comment=each.comment)
            for each in decisions_from_json(row["decisions"])
        ]
        standing = wire.Approval(
            state=row["door"],
            sentence=row["sentence"],
            count=approval.count,
            decisions=decisions,
            expires_ms=_ms(row["expires_at"]),
        )
        made.approval.CopyFrom(standing)
    return made


def job_message(row: Row, attempts: Sequence[Row], *, expanded: bool = False) -> wire.Job:
    """A job as it is shown. `expanded`: cells stand for it."""
    rules = job_rules(row["rules"])
    needs = _needs(row["needs"], rules)
    return wire.Job(
        id=row["id"],
        key=row["key"],
        stage=row["stage"],
        needs=needs or (),
        waits_for_stages=needs is None,
        state=common.JobState.Value(f"JOB_STATE_{row['state'].upper()}"),
        cause=cause_value(row["cause"]),
        sentence=row["sentence"],
        queued_ms=_ms(row["queued_at"]),
        started_ms=_ms(row["started_at"]),
        ended_ms=_ms(row["ended_at"]),
        pool=row["pool"],
        name=row["name"],
        cell=row["cell"],
        may_fail=rules.allow_failure,
        expanded=expanded,
        outputs=row["outputs"],
        due_ms=_ms(row["due_at"]),
        attempts=[_attempt_message(each) for each in attempts],
    )


def _needs(needs: Sequence[str] | None, rules: Rules) -> Sequence[str] | None:
    """Its needs without the jobs that cells stand for; None: all earlier stages."""
    if needs is None or (rules.by_stages and len(needs) == 1):
        return None
    with_cells = {need.split("[", 1)[0] for need in needs if "[" in need} | {rules.expander}
    return [need for need in needs if need not in with_cells]


def _attempt_message(row: Row) -> wire.Attempt:
    told = agents.Ended.FromString(row["steps"])
    fields: dict[str, Any] = {"try": row["try"]}
    if told.HasField("timings"):
        fields |= {name: getattr(told.timings, name) for name in _TIMINGS}
    return wire.Attempt(
        id=row["id"],
        state=common.AttemptState.Value(f"ATTEMPT_STATE_{row['state'].upper()}"),
        agent=row["agent"],
        cause=cause_value(row["cause"]),
        sentence=row["sentence"],
        leased_ms=_ms(row["leased_at"]),
        started_ms=_ms(row["started_at"]),
        ended_ms=_ms(row["ended_at"]),
        steps=told.steps,
        tests=told.tests if told.HasField("tests") else None,
        log_bytes=row["log_bytes"],
        **fields,
    )


def agent_message(row: Row) -> fleet.Agent:
    """An agent as it is shown."""
    sentence = row["quarantine"] or row["refusal"]
    presence = fleet.AGENT_PRESENCE_CONNECTED
    if sentence:
        presence = fleet.AGENT_PRESENCE_QUARANTINED
    elif row["drained"] or row["leaving"]:
        presence = fleet.AGENT_PRESENCE_DRAINING
    return fleet.Agent(
        name=row["name"],
        pool=row["pool"],
        labels=row["labels"],
        slots=row["slots"],
        busy=len(row["jobs"]),
        version=row["version"],
        presence=presence if row["connected"] else fleet.AGENT_PRESENCE_GONE,
        seen_ms=_ms(row["seen_at"]),
        sandboxes=[
            agents.SandboxAbility(
                kind=each["kind"],
                networks=each["networks"],
                hard_limits=each["hard_limits"],
                why_not=each["why_not"],
            )
            for each in row["sandboxes"]
        ],
        jobs=row["jobs"],
        sentence=sentence,
    )


def pool_message(row: Mapping[str, Any]) -> fleet.Pool:
    """A pool as it is shown."""
    return fleet.Pool(
        name=row["name"],
        paused=row["paused"],
        agents=row["agents"],
        slots=row["slots"],
        busy=row["busy"],
        queued=row["queued"],
    )


def _ms(when: datetime | None) -> int:
    """Milliseconds since the epoch; 0 for never."""
    return int(when.timestamp() * 1000) if when is not None else 0
