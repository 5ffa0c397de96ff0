"""Whatever is handed to the loader, it answers with a pipeline or with `PipelineError`, soon and in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline import Event, Pipeline, PipelineError, Plan, Problem, expand, load
from headrace.pipeline.language import JOB, PIPELINE, STAGE, STEP, UNBUILT
from headrace.pipeline.nodes import MAX_BYTES
from headrace.pipeline.records import Record

HOSTILE = Path(__file__).with_name("hostile.py")
KEYS = sorted({key for record in (PIPELINE, STAGE, JOB, STEP) for key in record.fields} | {"name", "on", "paths"})
words = st.sampled_from(["a", "b", "c", "artifact/a", "artifact/b", "docker", "host", "none", "5m", "", "x\0", "é"])
values = st.recursive(
    words | st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | words, inner, max_size=5),
    max_leaves=25,
)
names = st.sampled_from("abcdef")
things = st.sampled_from("pq")
artifact = st.fixed_dictionaries({"name": things, "paths": st.just(["x"])})
step = st.fixed_dictionaries({"run": st.just("make")}) | st.builds(lambda name: {"use": f"artifact/{name}"}, things)
job = st.fixed_dictionaries(
    {"steps": st.lists(step, min_size=1, max_size=2)},
    optional={
        "needs": st.lists(names, max_size=2),
        "artifacts": st.lists(artifact, max_size=1),
        "env": st.just({"A": "b"}),
    },
)
stage = st.fixed_dictionaries(
    {"name": st.sampled_from("xyz"), "jobs": st.dictionaries(names, job, min_size=1, max_size=3)}
)
pipelines = st.fixed_dictionaries(
    {"stages": st.lists(stage, min_size=1, max_size=3)}, optional={"env": st.just({"A": 1})}
)


def loaded(text: bytes) -> Pipeline | None:
    problems: tuple[Problem, ...] | None = None
    try:
        return load(text, "headrace.yml")
    except PipelineError as error:
        problems = error.problems
    assert problems
    assert all(each.line >= 1 and each.column >= 1 and each.message for each in problems)
    return None


def written(value: Any) -> bytes:
    """As JSON, which is YAML too and made much faster."""
    return json.dumps(value).encode()


@given(
    st.binary(max_size=200)
    | st.text(alphabet="ab:-?[]{}&*!|>'\"%#@`\\\n\t ,<~0x\r\ufeff", max_size=120).map(str.encode)
)
@settings(max_examples=250, deadline=None)
def test_any_bytes_are_refused_or_read(text: bytes) -> None:
    """A file comes from anybody who may push: no traceback, whatever it holds."""
    loaded(text)


@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=6))
@settings(max_examples=80, deadline=None)
def test_any_structure_is_refused_or_read(value: dict[str, Any]) -> None:
    """Right keys with wrong values are what people write."""
    loaded(written(value))


EXPRESSIONS = [
    "branch == 'main'", "always()", "matrix.k == 'a'", "needs.a.outcome == 'passed'", "steps.s.outputs.x", "params.p",
    "hash('*')", "env.A", "shard.index", "outputs.a.x", "event.pull_request.number > 1", "json('[1]')", "1 +", "x y",
    "[1].all(i, i > 0)", "needs['b'].cells.size()", "'}}'", "",
]  # fmt: skip
expressions = st.sampled_from(EXPRESSIONS)
texts = st.sampled_from(["a", "1.10", "3", "true", ""]) | st.builds(lambda one: f"x ${{{{ {one} }}}} y", expressions)
wholes = texts | st.builds(lambda one: f"${{{{ {one} }}}}", expressions)
scalars = st.sampled_from(["a", "b", 1, 2.5, True, None])
cell = st.dictionaries(st.sampled_from(["k", "os", "x-y"]), scalars, min_size=1, max_size=2)
matrices = st.fixed_dictionaries(
    {"k": st.lists(scalars, min_size=1, max_size=3)},
    optional={"include": st.lists(cell, max_size=2), "exclude": st.lists(cell, max_size=2), "fail_fast": st.booleans()},
)
retries = st.fixed_dictionaries(
    {"max": st.integers(0, 3)}, optional={"on": st.lists(st.sampled_from(["lost", "exit:1-3", "log:/a+/", "log:/(/"]))}
)
whole_steps = st.fixed_dictionaries(
    {"run": texts},
    optional={"if": expressions, "id": st.sampled_from("st"), "env": st.dictionaries(st.sampled_from("AB"), wholes),
              "retry": retries, "allow_failure": wholes, "timeout": st.sampled_from(["1m", "x", "${{ params.p }}m"])},
)  # fmt: skip
whole_jobs = st.fixed_dictionaries(
    {"steps": st.lists(whole_steps, min_size=1, max_size=3)},
    optional={
        "matrix": matrices, "parallel": st.integers(0, 3), "if": expressions, "needs": st.lists(names, max_size=2),
        "outputs": st.dictionaries(st.sampled_from("xy"), wholes), "extends": st.sampled_from(["t", "u", ["t", "u"]]),
        "env": st.dictionaries(st.sampled_from("AB"), wholes), "image": texts, "pool": wholes, "retry": retries,
        "cache": st.lists(st.fixed_dictionaries({"key": texts, "paths": st.just(["~/x"])}), max_size=1),
        "services": st.dictionaries(st.sampled_from(["db", "Db"]), st.fixed_dictionaries({"image": texts})),
        "artifacts": st.lists(st.fixed_dictionaries({"name": texts, "paths": st.lists(texts, max_size=2)}), max_size=1),
    },
)  # fmt: skip
whole_stages = st.fixed_dictionaries(
    {"name": names, "jobs": st.dictionaries(names, whole_jobs, min_size=1, max_size=3)},
    optional={"if": expressions, "approval": st.fixed_dictionaries({"message": texts}), "environment": wholes},
)
whole_pipelines = st.fixed_dictionaries(
    {"stages": st.lists(whole_stages, min_size=1, max_size=2)},
    optional={
        "templates": st.dictionaries(st.sampled_from("tuv"), whole_jobs, max_size=2),
        "on": st.just({"manual": {"parameters": {"p": {"type": "int", "default": 1}}}}),
        "env": st.dictionaries(st.sampled_from("AB"), wholes),
    },
)
edits = st.lists(
    st.tuples(
        st.floats(0, 1), st.integers(0, 30), st.sampled_from(["", "*a ", "&a ", "{", "]", "${{", ": ", '"', "<<: "])
    ),
    max_size=3,
)


def edited(text: bytes, changes: list[tuple[float, int, str]]) -> bytes:
    """The text with pieces cut out and others put in."""
    for share, length, put in changes:
        at = int(share * len(text))
        text = text[:at] + put.encode() + text[at + length :]
    return text


@given(whole_pipelines, edits)
@settings(max_examples=80, deadline=None)
def test_a_pipeline_of_the_whole_language_is_refused_or_planned(value: dict[str, Any], changes: Any) -> None:
    """Expressions, matrices, templates and conditions together, also with a slip of the editor in it."""
    pipeline = loaded(edited(written(value), changes))
    if pipeline is not None:
        with suppress(PipelineError):  # what an expression comes to may not fit where it stands
            assert expand(pipeline, Event(branch="main")).jobs


@pytest.mark.timeout(600)
def test_files_made_to_cost_much_stay_within_the_bounds() -> None:
    """A coordinator reads files of strangers: 2 s of a processor and 200 MiB are the most that any of 1 MiB takes."""
    made = subprocess.run([sys.executable, HOSTILE], capture_output=True, text=True, check=True)
    found = json.loads(made.stdout)
    assert len(found["seconds"]) > 40
    assert {name: cost for name, (cost, _) in found["seconds"].items() if cost > 2} == {}
    assert found["mib"] <= 200


def position(plan: Plan) -> dict[str, int]:
    """By key, the place in an order in which every job comes after its dependencies; fails when there is none."""
    done: dict[str, int] = {}
    left = list(plan.jobs)
    while left:
        ready = [job for job in left if all(need in done for need in dependencies(plan, job.key))]
        assert ready, "no order of the jobs exists"
        for each in ready:
            done[each.key] = len(done)
        left = [each for each in left if each.key not in done]
    return done


def dependencies(plan: Plan, key: str) -> set[str]:
    job = next(each for each in plan.jobs if each.key == key)
    return {each.key for each in plan.jobs if each.stage < job.stage} if job.needs is None else set(job.needs)


def all_dependencies(plan: Plan, key: str) -> set[str]:
    found: set[str] = set()
    todo = [key]
    while todo:
        new = dependencies(plan, todo.pop()) - found
        found |= new
        todo.extend(new)
    return found


def holds(plan: Plan) -> None:
    assert len(position(plan)) == len(plan.jobs)
    makers = {each.name: job.key for job in plan.jobs for each in job.artifacts}
    for planned in plan.jobs:
        for each in planned.steps:
            if used := getattr(each, "artifact", ""):
                assert makers[used] in all_dependencies(plan, planned.key)


@given(pipelines)
@settings(max_examples=100, deadline=None)
def test_what_loads_can_be_run_in_some_order_and_finds_its_artifacts(value: dict[str, Any]) -> None:
    """A plan that no order of jobs can satisfy would wait for ever; so would the plan of one job alone."""
    pipeline = loaded(written(value))
    if pipeline is None:
        return
    plan = expand(pipeline, Event())
    holds(plan)
    for each in plan.jobs:
        only = expand(pipeline, Event(), only=each.key)
        assert {job.key for job in only.jobs} == all_dependencies(plan, each.key) | {each.key}
        holds(only)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * MAX_BYTES,
        b"{" * MAX_BYTES,
        b"? " * (MAX_BYTES // 2),
        b"[\n" * (MAX_BYTES // 2),
        b"a: !" + b"x" * (MAX_BYTES - 8),
        b"%YAML 1." + b"1" * (MAX_BYTES - 20),
        b"a: " + b"x " * (MAX_BYTES // 2 - 4),
        b"a: |\n" + b"\n" * (MAX_BYTES - 8),
        b"k: v\n" * (MAX_BYTES // 5),
        b"a: &a [x]\nb: [" + b"*a," * 300_000 + b"]",
        b"#" * MAX_BYTES,
        b"x" * (MAX_BYTES + 1),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_a_file_made_to_cost_much_is_refused(text: bytes) -> None:
    """A coordinator reads files of strangers: bounds hold before the work is done."""
    with pytest.raises(PipelineError) as refused:
        load(text, "headrace.yml")
    assert len(refused.value.problems) == 1


@pytest.mark.parametrize(("level", "record"), [("pipeline", PIPELINE), ("job", JOB), ("step", STEP)])
def test_a_key_that_is_not_built_is_refused_whether_it_has_a_shape_or_not(level: str, record: Record) -> None:
    """A key whose meaning is not carried out must never be read and passed over; its line alone holds it back."""
    assert record.unbuilt == UNBUILT.get(level, {})
    assert not set(record.known) & record.unbuilt.keys()
