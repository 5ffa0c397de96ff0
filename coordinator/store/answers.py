"""What the core wants to see while it follows up: each kind of question in at most a few statements."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import asyncpg

from coordinator.core.door_rules import decisions_from_json, env_from_json, rules_from_json
from coordinator.core.facts import Ended, needs_of, outputs_of
from coordinator.core.follow import (
    LoadBehind,
    LoadDependents,
    LoadDoor,
    LoadFacts,
    LoadGates,
    LoadGroup,
    LoadStage,
    Need,
)
from coordinator.core.job import Job, Place, Turn
from coordinator.core.rules import rules_from_json as job_rules
from coordinator.core.stages import Door, DoorState, Gate, Group
from coordinator.core.states import Cause, JobState
from coordinator.store.database import Connection
from coordinator.store.sql import statements

SQL = statements("settle")
Kind = TypeVar("Kind", bound=Need)


def job_of(row: asyncpg.Record) -> Job:
    """A job row as the core knows it."""
    return Job(
        id=row["id"],
        key=row["key"],
        stage=row["stage"],
        state=JobState(row["state"]),
        cause=Cause(row["cause"]),
        sentence=row["sentence"],
        unfinished=row["unfinished"],
        failed=row["failed"],
        decider=row["decider"],
        at_most_once=row["at_most_once"],
        asks=row["asks"],
        awaits=row["awaits"],
        upstream_failed=row["upstream_failed"],
        rules=job_rules(row["rules"]),
        admitted=row["admitted"],
        place=Place(row["cell_place"]),
        turn=Turn(row["turn"]),
        tries=row["tries"],
        lost=row["lost"],
        errored=row["errored"],
        retried=row["retried"],
    )


def gate_of(row: asyncpg.Record) -> Gate:
    """A stage's gate from its row."""
    return Gate(
        row["index"], row["unfinished"], row["failed"], row["decider"],
        upstream_failed=row["upstream_failed"], guarded=row["door"] is not None,
    )  # fmt: skip


async def answer(db: Connection, needs: Mapping[int, Need]) -> dict[int, Any]:
    """The answers to one round of questions, by run."""
    answers: dict[int, Any] = {run_id: [] for run_id in needs}
    for kind, load in _LOADERS.items():
        asked = {run_id: need for run_id, need in needs.items() if isinstance(need, kind)}
        if asked:
            await load(db, asked, answers)
    return answers


async def _dependents(db: Connection, asked: Mapping[int, LoadDependents], answers: dict[int, Any]) -> None:
    for row in await db.fetch(SQL.dependents, [job for need in asked.values() for job in need.jobs]):
        answers[row["run_id"]].append((row["source"], job_of(row)))


async def _gates(db: Connection, asked: Mapping[int, LoadGates], answers: dict[int, Any]) -> None:
    for row in await db.fetch(SQL.gates, list(asked)):
        answers[row["run_id"]].append(gate_of(row))


async def _behind(db: Connection, asked: Mapping[int, LoadBehind], answers: dict[int, Any]) -> None:
    for row in await db.fetch(SQL.behind, list(asked), [need.stage for need in asked.values()]):
        answers[row["run_id"]].append(job_of(row))


async def _stage(db: Connection, asked: Mapping[int, LoadStage], answers: dict[int, Any]) -> None:
    for row in await db.fetch(SQL.stage_jobs, list(asked), [need.stage for need in asked.values()]):
        answers[row["run_id"]].append(job_of(row))


async def _facts(db: Connection, asked: Mapping[int, LoadFacts], answers: dict[int, Any]) -> None:
    jobs = [job for need in asked.values() for job in need.jobs]
    over = {key: job for need in asked.values() for key, job in need.ended.items()}
    needs = await needs_of_jobs(db, jobs, over)
    contexts = {row["id"]: row["context"] for row in await db.fetch(SQL.contexts, jobs)}
    for run_id, need in asked.items():
        answers[run_id] = {
            job: {**(json.loads(contexts[job]) if contexts[job] else {}), "needs": needs.get(job, {})}
            for job in need.jobs
        }


async def needs_of_jobs(
    db: Connection, jobs: Sequence[int], over: Mapping[int, Job] | None = None
) -> dict[int, dict[str, Any]]:
    """`needs` of these jobs, as expressions see it now. `over`: jobs that have ended, and are not written yet."""
    ended: dict[int, list[Ended]] = defaultdict(list)
    for row in await db.fetch(SQL.needs_of, jobs):
        known = (over or {}).get(row["id"])
        if known is not None and known.has_vanished:
            continue
        state = JobState(row["state"]) if known is None else known.state
        expands = job_rules(row["rules"]).expands
        ended[row["dependent"]].append(Ended(row["name"], state, row["cell"], row["outputs"], expands))
    return {job: needs_of(found) for job, found in ended.items()}


async def _doors(db: Connection, asked: Mapping[int, LoadDoor], answers: dict[int, Any]) -> None:
    keys = (list(asked), [need.stage for need in asked.values()])
    outputs: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for row in await db.fetch(SQL.outputs_before, *keys):
        outputs[row["run_id"]].append((row["name"], row["outputs"]))
    for row in await db.fetch(SQL.doors, *keys):
        condition, approval = rules_from_json(row["rules"])
        answers[row["run_id"]] = Door(
            stage=row["index"],
            name=row["name"],
            state=DoorState(row["door"]),
            condition=condition,
            approval=approval,
            decisions=decisions_from_json(row["decisions"]),
            sentence=row["sentence"],
            values={
                **json.loads(row["context"]),
                "env": env_from_json(row["rules"]),
                "outputs": outputs_of(outputs[row["run_id"]]),
            },
        )


async def door_of(db: Connection, run_id: int, stage: int) -> Door:
    """The door of one stage."""
    answers: dict[int, Any] = {}
    await _doors(db, {run_id: LoadDoor(stage)}, answers)
    door: Door = answers[run_id]
    return door


async def _groups(db: Connection, asked: Mapping[int, LoadGroup], answers: dict[int, Any]) -> None:
    keys = (list(asked), [need.name for need in asked.values()])
    jobs: dict[int, list[Job]] = defaultdict(list)
    for row in await db.fetch(SQL.group_jobs, *keys):
        jobs[row["run_id"]].append(job_of(row))
    for row in await db.fetch(SQL.groups, *keys):
        group = Group(row["name"], row["max_parallel"], row["fail_fast"], row["active"])
        answers[row["run_id"]] = (group, jobs[row["run_id"]])


_LOADERS: Mapping[type[Need], Callable[..., Any]] = {
    LoadDependents: _dependents,
    LoadGates: _gates,
    LoadBehind: _behind,
    LoadStage: _stage,
    LoadFacts: _facts,
    LoadDoor: _doors,
    LoadGroup: _groups,
}
