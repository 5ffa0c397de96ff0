"""What a pipeline means: dependencies, defaults, precedence, one job with what it needs."""

from __future__ import annotations

import pytest

from headrace.pipeline import Event, PipelineError, Plan, SandboxKind, expand, load

FAN = b"""
name: web
defaults: {image: debian}
stages:
  - name: build
    jobs:
      wheel: {steps: [{run: make}]}
      docs: {steps: [{run: make docs}]}
  - name: test
    jobs:
      unit: {needs: [wheel], steps: [{run: pytest}]}
      lint: {needs: [], steps: [{run: ruff check}]}
  - name: release
    environment: production
    jobs: {deploy: {steps: [{run: ./deploy}]}}
"""


def plan(text: bytes = FAN, only: str = "", sandbox: SandboxKind | None = None) -> Plan:
    return expand(load(text, "headrace.yml"), Event(), only=only, sandbox=sandbox)


def test_a_job_alone_brings_what_it_needs_and_the_stages_close_up() -> None:
    """`--job unit` must not build the documentation, and stage numbers must stay indexes."""
    alone = plan(only="unit")
    assert [(job.key, alone.stages[job.stage].name) for job in alone.jobs] == [("wheel", "build"), ("unit", "test")]
    assert [job.key for job in plan(only="lint").jobs] == ["lint"]


def test_a_job_without_needs_brings_all_earlier_stages() -> None:
    """Left-out needs mean all jobs of all earlier stages, also when one job is asked for."""
    assert [job.key for job in plan(only="deploy").jobs] == ["wheel", "docs", "unit", "lint", "deploy"]


def test_an_unknown_job_is_refused_with_the_nearest_name() -> None:
    """A typing mistake on the command line gets the same help as one in the file."""
    with pytest.raises(PipelineError, match="no job `unti`; did you mean `unit`"):
        plan(only="unti")


def test_jobs_of_a_stage_with_an_environment_are_delivered_at_most_once() -> None:
    """A deployment that may run twice is worse than one that waits for a person."""
    assert [str(job.delivery) for job in plan().jobs][-2:] == ["at-least-once", "at-most-once"]


def test_another_sandbox_drops_the_image_that_it_cannot_run() -> None:
    """`--sandbox bubblewrap` runs a docker pipeline where there is no engine; the image has no meaning there."""
    assert {(job.sandbox, job.image) for job in plan().jobs} == {(SandboxKind.DOCKER, "debian")}
    assert {(job.sandbox, job.image) for job in plan(sandbox=SandboxKind.BUBBLEWRAP).jobs} == {
        (SandboxKind.BUBBLEWRAP, "")
    }


def test_parameters_are_refused_until_a_pipeline_can_declare_them() -> None:
    """A parameter that nobody reads is a mistake of whoever gave it."""
    with pytest.raises(PipelineError, match="declares no parameters, but `target` was given"):
        expand(load(FAN, "headrace.yml"), Event(params={"target": "x"}))


def test_a_nameless_pipeline_bears_the_name_of_its_file() -> None:
    """A first pipeline should need no more lines than it has to say."""
    text = b"stages: [{name: a, jobs: {b: {steps: [{run: c}]}}}]"
    assert expand(load(text, "ci/nightly.yml"), Event()).name == "nightly"


def test_a_step_is_named_by_the_first_line_that_does_something() -> None:
    """A log section titled `set -eu` or by a whole script helps nobody."""
    text = b'stages: [{name: a, jobs: {b: {steps: [{run: "# why\\n\\nmake all\\nmake more"}, {run: %s}]}}}]' % (
        b"x" * 80
    )
    assert [step.name for step in plan(text).jobs[0].steps] == ["make all", "x" * 59 + "…"]


def test_all_mistakes_are_told_in_one_go_sorted_by_place() -> None:
    """Whoever mends a file wants one round, not ten."""
    text = FAN.replace(b"needs: [wheel]", b"needs: [whel], tiemout: 3").replace(b"name: web", b"nam: web")
    with pytest.raises(PipelineError) as refused:
        load(text, "headrace.yml")
    assert [(each.line, each.message.partition(";")[2]) for each in refused.value.problems] == [
        (2, " did you mean `name`?"),
        (11, " did you mean `wheel`?"),
        (11, " did you mean `timeout`?"),
    ]
