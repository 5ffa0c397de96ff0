"""A matrix from what a job has found out, from end to end: in the run, in what is shown of it, and over a retry."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.timeout(300)

PARTS = r"""
name: parts
defaults: {shell: sh}
stages:
  - name: look
    jobs:
      list:
        steps:
          - id: l
            run: |
              if [ "$HEADRACE_ATTEMPT" = 1 ]; then parts='["left", "right"]'; else parts='["right", "new"]'; fi
              echo "parts=$parts" >> "$HEADRACE_OUTPUT"
        outputs: {parts: "${{ steps.l.outputs.parts }}"}
      unit:
        needs: [list]
        matrix: {part: "${{ json(needs.list.outputs.parts) }}"}
        steps:
          - run: echo "I am $MATRIX_PART"; echo "$MATRIX_PART" > part
          - run: 'echo "<testsuite name=\"s\"><testcase name=\"$MATRIX_PART\"/></testsuite>" > report.xml'
        artifacts: [{name: "part-${{ matrix.part }}", paths: [part]}]
        reports: {junit: [report.xml]}
  - name: last
    jobs: {end: {steps: [{run: "echo that was all"}]}}
"""


def test_a_matrix_gets_its_cells_from_an_output_and_others_after_a_retry(scene):
    """What there is to do is known when somebody has looked; the job that stood for it is none in the end."""
    scene.repository(PARTS)
    done = scene("run")
    assert done.code == 0, done.out + done.err
    for line in ("unit[part=left] | I am left\n", "unit[part=right] | I am right\n", "end | that was all\n"):
        assert line in done.out
    shown = json.loads(scene("show", "--json").out)
    states = {job["key"]: job["state"] for job in shown["jobs"]}
    assert list(states.items()) == [
        (key, "passed") for key in ("list", "unit[part=left]", "unit[part=right]", "end")
    ], "in the order of the file"
    cell = next(job for job in shown["jobs"] if job["key"] == "unit[part=left]")
    assert (cell["needs"], cell["matrix"]) == (["list"], {"part": "left"})
    assert cell["attempts"][0]["tests"]["tests"] == 1
    artifacts = json.loads(scene("artifacts", "--json").out)["artifacts"]
    assert sorted(each["name"] for each in artifacts) == ["part-left", "part-right"]

    again = scene("retry", str(shown["id"]), "list")
    assert again.code == 0, again.out + again.err
    assert "I am new" in again.out
    after = {job["key"]: (job["state"], job["cause"], len(job["attempts"])) for job in json.loads(
        scene("show", "--json").out)["jobs"]}  # fmt: skip
    assert after["unit[part=left]"] == ("canceled", "cell_vanished", 1)
    assert after["unit[part=right]"] == ("passed", None, 2)
    assert after["unit[part=new]"] == ("passed", None, 1)
    assert "unit" not in after
