"""Validating and planning 2,000 jobs with dense needs. The value is milliseconds for both, the best of some rounds.

    python benchmarks/plan.py [--rounds N]

The loader reads at most 1,000 jobs a run, so the file has 50 jobs of 20 cells each, and each job needs the ten before
it; the pipeline that was loaded is widened to 40 cells a job, and the planner makes 2,000 jobs of it. The peer does
less: PyYAML reads the same file, jsonschema validates it by Headrace's own schema, graphlib orders the graph of the
plan. Nobody checks names, expressions or artifacts there. Half, a quarter and an eighth of the jobs show the growth.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from graphlib import TopologicalSorter

import yaml
from jsonschema import Draft202012Validator

from benchmarks.harness.result import result
from headrace.pipeline import Event, Pipeline, Plan, expand, load, schema
from headrace.pipeline.model import MatrixDef

_CELLS, _NEEDS = 20, 10


def text(jobs: int) -> bytes:
    """A file of so many jobs of `_CELLS` cells each."""
    return json.dumps(
        {"name": "dense", "stages": [{"name": "all", "jobs": {f"job-{i}": _job(i) for i in range(jobs)}}]}
    ).encode()


def _job(number: int) -> dict[str, object]:
    needs = [f"job-{i}" for i in range(max(0, number - _NEEDS), number)]
    cells = {"part": list(range(_CELLS))}
    steps = [{"run": "make part-${{ matrix.part }}"}, {"run": "make test", "if": "always()"}]
    return {"needs": needs, "matrix": cells, "env": {"PART": "${{ matrix.part }}"}, "steps": steps}


def widened(pipeline: Pipeline) -> Pipeline:
    """The same with twice as many cells a job."""
    matrix = MatrixDef(pipeline.jobs[0].name.place, {"part": tuple(range(2 * _CELLS))})
    stage = pipeline.stages[0]
    return replace(pipeline, stages=(replace(stage, jobs=tuple(replace(each, matrix=matrix) for each in stage.jobs)),))


def best(rounds: int, work: Callable[[], object]) -> float:
    """Milliseconds of the quickest round."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - begun))
    return min(times)


def peer(file: bytes, plan: Plan) -> None:
    """Reads, validates by the schema, and orders."""
    Draft202012Validator(schema()).validate(yaml.safe_load(file))
    assert len(list(TopologicalSorter({job.key: job.needs or () for job in plan.jobs}).static_order())) == len(
        plan.jobs
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print("    jobs    edges   load ms   plan ms   µs a job and edge")
    ours = theirs = 0.0
    for jobs in (6, 12, 25, 50):
        file = text(jobs)
        pipeline = widened(load(file, "headrace.yml"))
        plan = expand(pipeline, Event(), most=2_000)
        loading = best(rounds, lambda file=file: load(file, "headrace.yml"))
        planning = best(rounds, lambda pipeline=pipeline: expand(pipeline, Event(), most=2_000))
        edges = sum(len(each.needs or ()) for each in plan.jobs)
        each = 1000 * (loading + planning) / (len(plan.jobs) + edges)
        print(f"{len(plan.jobs):8} {edges:8} {loading:9.1f} {planning:9.1f} {each:19.2f}")
        ours = loading + planning
        theirs = best(rounds, lambda file=file, plan=plan: peer(file, plan))
    print(result("plan_2000_jobs", ours, "ms", "PyYAML + jsonschema + graphlib", theirs).line())


if __name__ == "__main__":
    main()
