"""What is told of a pipeline before it runs."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from headrace.cli.explain import explained
from headrace.pipeline import Event, Explanation, PullRequest, expand, explain, explanation_to_json, load
from headrace.pipeline.explaining import ExplainedJob
from headrace.pipeline.plan import Concurrency, WhenFull

PIPELINE = b"""
name: web
on: {push: {branches: [main]}}
stages:
  - name: build
    jobs:
      wheel:
        steps: [{id: v, run: make}]
        outputs: {version: "${{ steps.v.outputs.version }}"}
        artifacts: [{name: dist, paths: [dist]}]
        reports: {junit: [report.xml]}
  - name: test
    jobs:
      unit:
        needs: [wheel]
        matrix: {python: ["3.11", "3.12"], max_parallel: 1, fail_fast: true}
        image: "python:${{ matrix.python }}"
        if: "event.type == 'push'"
        allow_failure: "${{ matrix.python == '3.12' }}"
        retry: {max: 2, on: [lost]}
        env: {V: "${{ needs.wheel.outputs.version }}"}
        steps: [{run: pytest}, {name: report, run: upload, if: always()}]
      shards: {parallel: 2, needs: [], steps: [{run: pytest}]}
      clean: {if: failure(), steps: [{run: clean}]}
  - name: release
    if: "outputs.wheel.version != ''"
    environment: {name: production, url: "https://example.com"}
    approval: {from: [role:maintainer], count: 2, timeout: 3d, message: "Ship ${{ outputs.wheel.version }}?"}
    jobs: {deploy: {steps: [{run: ship}]}}
"""
PUSH = Event("push", branch="main")
CELLS = ("unit[python=3.11]", "unit[python=3.12]")


def explanation(event: Event = PUSH) -> Explanation:
    pipeline = load(PIPELINE, "headrace.yml")
    return explain(pipeline, expand(pipeline, event), event)


def shown(event: Event = PUSH) -> list[str]:
    pipeline = load(PIPELINE, "headrace.yml")
    plan = expand(pipeline, event)
    return explained(plan, explain(pipeline, plan, event)).splitlines()


def test_the_graph_is_told_as_a_person_would_tell_it():
    """The snapshot of what `--explain` prints: who waits for whom, what decides, who is asked."""
    assert (
        "\n".join(shown())
        == """\
pipeline web
a push of main starts it: the branch `main` matches `main` of `on.push.branches`

stage build
  job wheel
    sandbox any, network full, pool default
    waits for nothing
    looks at steps: known only once it begins
    step 1: make
    keeps dist (dist) when passed
    reports tests of report.xml

stage test
  job unit: 2 cells, 1 at a time, the first that fails cancels the others
    [python=3.11]: image python:3.11
    [python=3.12]: image python:3.12, may fail with a warning
    network full, pool default
    waits for wheel
    looks at needs: known only once it begins
    is tried up to 3 times on lost
    step 1: pytest
    step 2: report, if always()
  job shards: 2 shards
    [shard=1]
    [shard=2]
    sandbox any, network full, pool default
    waits for nothing
    step 1: pytest
  job clean
    judged once what it waits for has ended: `if: failure()`
    sandbox any, network full, pool default
    waits for all earlier stages (wheel)
    step 1: clean

stage release: environment production, https://example.com
  judged later: `if: outputs.wheel.version != ''`
  asks for 2 approvals from role:maintainer within 3 d: Ship ${{ outputs.wheel.version }}?
  job deploy
    sandbox any, network full, pool default
    waits for all earlier stages (wheel, unit, shards, clean)
    step 1: ship"""
    )


def test_groups_say_how_many_are_let_in_and_what_becomes_of_the_others():
    """A run that is canceled by its successor surprises whoever did not read it here."""
    pipeline = load(PIPELINE, "headrace.yml")
    plan = expand(pipeline, PUSH)
    jobs = (replace(plan.jobs[0], concurrency=Concurrency("db", 2)), *plan.jobs[1:])
    grouped = replace(plan, jobs=jobs, concurrency=Concurrency("web-main", 1, WhenFull.CANCEL_OLDER))
    lines = explained(grouped, explain(pipeline, grouped, PUSH)).splitlines()
    assert "its runs are in the group web-main: 1 at a time, a newer one cancels the older" in lines
    assert "    is in the group db: 2 at a time, others wait" in lines


def test_a_job_that_an_event_leaves_out_says_which_condition_and_with_what_values():
    """`Why did the tests not run` is answered before it is asked."""
    lines = shown(Event("pull_request", pull_request=PullRequest(1, "topic", "main")))
    assert lines[1] == "a pull request to main does not start it: `on` names no `pull_request`"
    assert "      would not run: the `if` of `unit` is false: `event.type == 'push'`, with event.type =" in lines


@pytest.mark.parametrize(
    ("key", "runs", "waits"),
    [
        ("wheel", "yes", ()),
        ("unit[python=3.11]", "yes", ("wheel",)),
        ("clean", "later", ("wheel",)),
        ("deploy", "later", ("wheel", *CELLS, "shards[shard=1]", "shards[shard=2]", "clean")),
    ],
)
def test_what_a_job_waits_for_and_what_decides_is_known_beforehand(key, runs, waits):
    """For a script as for a person: yes, no, or what decides later."""
    (found,) = (job for job in explanation().jobs if job.key == key)
    assert (found.runs, found.waits_for, bool(found.reasons)) == (runs, waits, runs != "yes")


def test_an_approval_and_a_condition_of_the_stage_are_both_named():
    """Each can hold it up alone."""
    assert explanation().jobs[-1].reasons == (
        "judged once the stages before have ended: `if: outputs.wheel.version != ''` of the stage",
        "asked of a person once the stages before have ended",
    )


@pytest.mark.parametrize("kind", [Explanation, ExplainedJob])
def test_its_json_is_as_documented(kind):
    """Scripts are written against the page."""
    text = (Path(__file__).parents[3] / "docs/reference/json.md").read_text()
    section = re.search(rf"^## {kind.__name__}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    assert re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE) == [each.name for each in fields(kind)]
    found = explanation_to_json(explanation())
    json.dumps(found)
    assert list(found["event"]) == ["type", "branch", "tag", "commit", "params", "pull_request", "changed"]


def test_a_matrix_that_comes_later_says_when_its_cells_are_known():
    """Nobody is to look for cells that cannot be there yet."""
    pipeline = load(
        b"""
stages:
  - name: test
    jobs:
      list: {steps: [{id: l, run: make}], outputs: {all: "${{ steps.l.outputs.all }}"}}
      unit: {needs: [list], if: always(), matrix: {part: "${{ json(needs.list.outputs.all) }}"}, steps: [{run: make}]}
      none: {matrix: {part: "${{ branch == 'x' ? ['a'] : [] }}"}, steps: [{run: make}]}
      report: {needs: [unit], steps: [{run: make}]}
""",
        "headrace.yml",
    )
    plan = expand(pipeline, PUSH)
    told = explain(pipeline, plan, PUSH)
    lines = explained(plan, told).splitlines()
    at = lines.index("  job unit")
    assert lines[at + 1 : at + 4] == [
        "    its cells are known when `list` is done (part: json(needs.list.outputs.all))",
        "    judged once what it waits for has ended: `if: always()`",
        "    waits for list",
    ]
    assert any(line.strip().startswith("would not run: its matrix is empty: `branch == 'x'") for line in lines)
    unit = explanation_to_json(told)["jobs"][1]
    assert (unit["runs"], unit["waits_for"]) == ("later", ["list"])
