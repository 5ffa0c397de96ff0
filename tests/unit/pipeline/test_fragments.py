"""What a step adds to its run: put into the whole, judged with the whole, told at its own places."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline import Event, PipelineError
from headrace.pipeline.fragments import Extension, Fragment, Origin, extend

FILE = b"""
env: {WIDE: "1"}
templates: {quick: {timeout: 1m, steps: [{run: quick}]}}
stages:
  - name: first
    jobs: {early: {steps: [{run: e}], artifacts: [{name: seed, paths: [s]}]}}
  - name: make
    env: {OF_STAGE: "1"}
    jobs:
      gen: {steps: [{run: g}], artifacts: [{name: dist, paths: [d]}], outputs: {v: x}}
      beside: {pool: big, secrets: [TOKEN], steps: [{run: b}]}
  - name: deploy
    environment: production
    jobs: {ship: {steps: [{use: artifact/dist}]}}
"""


def added(text: str, *before: str, by: str = "gen", only: str = "") -> Extension:
    origin = Origin(FILE, "headrace.yml", Event("push", branch="main"), only=only)
    earlier = [Fragment(each.encode(), "gen", "default") for each in before]
    return extend(origin, earlier, text.encode(), by)


def refusals(text: str, *before: str, by: str = "gen", only: str = "") -> list[str]:
    with pytest.raises(PipelineError) as refusal:
        added(text, *before, by=by, only=only)
    return [str(each) for each in refusal.value.problems]


def stages(extension: Extension) -> list[str]:
    return [stage.name for stage in extension.plan.stages]


A = "stages: [{name: a, jobs: {one: {steps: [{use: artifact/dist}]}}}]"
B = "stages: [{name: b, jobs: {two: {needs: [one], steps: [{run: x}]}}}]"


def test_stages_are_added_behind_the_present_one_in_the_order_of_coming():
    """The second fragment of a job reads as if it had stood below the first."""
    assert stages(added(A)) == ["first", "make", "a", "deploy"]
    found = added(B, A)
    assert stages(found) == ["first", "make", "a", "b", "deploy"]
    assert (found.jobs, found.stages, found.place) == ({"two"}, {3}, (1, 17, "$HEADRACE_PIPELINE"))


def test_jobs_are_added_to_the_present_stage_or_a_later_one():
    """They have the environment of their stage, and of the pipeline, as its other jobs have."""
    found = added("stage: make\njobs:\n  more: {needs: [gen], steps: [{use: artifact/dist}]}")
    (more,) = (job for job in found.plan.jobs if job.key in found.jobs)
    assert (more.stage, more.needs, dict(more.env)) == (1, ("gen",), {"WIDE": "1", "OF_STAGE": "1"})
    assert found.stages == frozenset()
    (problem,) = refusals("stage: first\njobs: {x: {steps: [{run: x}]}}")
    assert problem.startswith("$HEADRACE_PIPELINE:1:8: `first` comes before the present stage `make`; ")
    assert "did you mean `deploy`?" in refusals("stage: deplyo\njobs: {x: {steps: [{run: x}]}}")[0]


def test_added_jobs_are_built_on_the_templates_of_the_file():
    """Whoever generates jobs writes down what differs."""
    found = added("stages: [{name: a, jobs: {one: {extends: quick}}}]")
    assert next(job for job in found.plan.jobs if job.key == "one").timeout_ms == 60_000


def test_a_matrix_can_be_added():
    """Cells of an added job are jobs of the run like any others."""
    found = added("stages: [{name: a, jobs: {one: {matrix: {n: [1, 2], max_parallel: 1}, steps: [{run: x}]}}}]")
    assert found.jobs == {"one[n=1]", "one[n=2]"}
    assert [group.name for group in found.plan.groups] == ["one"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("stages:\n  - name: a\n    jobs:\n      x: {needs: [gne], steps: [{run: x}]}",
         "4:19: the job `x` needs `gne`, which does not exist; did you mean `gen`?"),
        ("stages: [{name: a, jobs: {x: {steps: [{run: x, id: 1x}]}}}]", "1:52: `id` cannot be `1x`;"),
        ("stages: [{name: a, jobs: {x: {steps: [{use: artifact/dits}]}}}]", "1:45: no job makes an artifact `dits`"),
        ("stages: [{name: a, jobs: {x: {if: needs.gen.outputs.w == '', needs: [gen], steps: [{run: x}]}}}]", "1:"),
        ("stages: [{name: deploy, jobs: {x: {steps: [{run: x}]}}}]", "1:17: the run has a stage `deploy` already"),
        ("stages: [{name: a, jobs: {ship: {steps: [{run: x}]}}}]",
         "1:27: the run has a job `ship` already, of the stage `deploy`"),
        ("stage: deploy\njobs: {ship: {steps: [{run: x}]}}", "2:8: the run has a job `ship` already"),
        ("stages: [{name: a, jobs: {x: {pool: big, steps: [{run: x}]}}}]", "1:37: `x` asks for the pool `big`"),
        ("stages: [{name: a, jobs: {x: {secrets: [TOKEN], steps: [{run: x}]}}}]", "1:41: `x` names the secret `TOKEN`"),
        ("stages: [{name: a, environment: production, jobs: {x: {steps: [{run: x}]}}}]",
         "1:52: `x` would be of the environment `production`"),
        ("stage: deploy\njobs: {x: {steps: [{run: x}]}}", "2:8: `x` would be of the environment `production`"),
        ("jobs: {x: {steps: [{run: x}]}}", "1:1: a fragment has `stages`, or `stage` (the name of one) and `jobs`"),
        ("stages: [", "1:10: "),
        ("name: x\nstages: []", "1:1: a fragment has no key `name`"),
        ("", "1:1: the file is empty"),
    ],
)  # fmt: skip
def test_a_mistake_has_its_position_in_the_fragment(text, problem):
    """The person reads it in the log of the step that wrote the file."""
    assert refusals(text)[0].startswith(f"$HEADRACE_PIPELINE:{problem}")


def test_what_only_the_whole_cannot_bear_is_told_of_the_fragment():
    """The thousandth job may be one of the file, and it was right until then."""
    cells = ", ".join(map(str, range(997)))
    text = f"stages: [{{name: a, jobs: {{x: {{matrix: {{n: [{cells}]}}, steps: [{{run: x}}]}}}}}}]"
    (problem,) = refusals(text)
    assert problem.startswith("$HEADRACE_PIPELINE:1:1: with this, headrace.yml:14:12 is wrong: ")
    assert "1,001 jobs" in problem


def test_an_added_job_has_at_most_the_secrets_and_the_pool_of_the_job_that_adds_it():
    """Who may write a script of one job may not reach what another one was trusted with."""
    found = added("stages: [{name: a, jobs: {x: {secrets: [TOKEN], steps: [{run: x}]}}}]", by="beside")
    (job,) = (each for each in found.plan.jobs if each.key == "x")
    assert (job.pool, job.secrets) == ("big", ("TOKEN",))


def test_a_run_of_one_job_grows_by_what_that_adds_and_by_nothing_else():
    """`--job` leaves the other jobs of the file out, and an added one cannot bring them back."""
    found = added(A, only="gen")
    assert [job.key for job in found.plan.jobs] == ["early", "gen", "one"]
    assert "started without; start the run without `--job`" in refusals(
        "stages: [{name: a, jobs: {x: {needs: [beside], steps: [{run: x}]}}}]", only="gen"
    )[0]  # fmt: skip


@given(st.text(alphabet="abgenstdxo:[]{}, -\n'\"&*!|>$", max_size=60).map(lambda text: f"stages: {text}"))
@settings(max_examples=150, deadline=None)
def test_whatever_a_step_writes_is_added_or_refused_with_positions(text):
    """Nobody reads a traceback in the log of a job."""
    try:
        problems = added(text).jobs and ()
    except PipelineError as error:
        problems = error.problems
    assert all(each.file == "$HEADRACE_PIPELINE" for each in problems)
