"""Dynamic pipelines from end to end: a step finds out what there is to do, and its run does it."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.timeout(300)

GROWS = """
name: grows
defaults: {shell: sh}
stages:
  - name: look
    jobs:
      look:
        steps:
          - run: |
              mkdir parts; for part in left right; do echo "I am $part" > parts/$part; done
              echo 'stages: [{name: parts, jobs: {' > "$HEADRACE_PIPELINE"
              for part in left right; do
                echo "$part: {steps: [{use: artifact/parts}, {run: cat parts/$part}]}," >> "$HEADRACE_PIPELINE"
              done
              echo '}}]' >> "$HEADRACE_PIPELINE"
        artifacts: [{name: parts, paths: [parts]}]
  - name: last
    jobs: {end: {steps: [{run: "echo that was all"}]}}
"""

ERRS = """
name: errs
defaults: {shell: sh}
stages:
  - name: look
    jobs:
      look:
        steps:
          - name: generate
            run: |
              echo 'stage: later' > "$HEADRACE_PIPELINE"
              echo 'jobs: {more: {needs: [nobody], steps: [{run: x}]}}' >> "$HEADRACE_PIPELINE"
  - name: later
    jobs: {end: {steps: [{run: "echo never"}]}}
"""


def test_a_step_adds_a_stage_whose_jobs_use_its_artifact(scene):
    """What is to be done is known when the code has been looked at, not when the file was written."""
    scene.repository(GROWS)
    done = scene("run")
    assert done.code == 0, done.out + done.err
    for line in ("left | I am left\n", "right | I am right\n", "end | that was all\n"):
        assert line in done.out
    assert done.out.index("I am left") < done.out.index("that was all")
    assert "headrace: 2 jobs were added to the run\n" in done.out
    shown = json.loads(scene("show", "--json").out)
    assert [stage["name"] for stage in shown["stages"]] == ["look", "parts", "last"]
    assert {job["key"]: job["stage"] for job in shown["jobs"]} == {"look": 0, "left": 1, "right": 1, "end": 2}


def test_a_mistake_in_what_a_step_adds_fails_the_step_with_its_position(scene):
    """Nothing of it is added, and the person reads where it stands."""
    scene.repository(ERRS)
    done = scene("run")
    assert done.code == 1, done.out + done.err
    mistake = "$HEADRACE_PIPELINE:2:23: the job `more` needs `nobody`, which does not exist"
    assert f"headrace: {mistake}" in done.out
    shown = json.loads(scene("show", "--json").out)
    assert [job["key"] for job in shown["jobs"]] == ["look", "end"]
    (step,) = shown["jobs"][0]["attempts"][0]["steps"]
    assert step["sentence"] == mistake
