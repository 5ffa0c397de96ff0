"""Matrices whose values come from expressions: what they come to, and what nobody may make of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.pipeline import Event, PipelineError, PlannedJob, expand, load
from headrace.pipeline.cells import MAX_JOBS
from headrace.pipeline.fragments import Expanded, Fragment, Origin, expand_matrix, extend
from headrace.pipeline.late_matrix import Lists

FILE = """
stages:
  - name: build
    jobs:
      list: {steps: [{id: l, run: make}], outputs: {all: "${{ steps.l.outputs.all }}"}}
      other: {steps: [{run: make}]}
  - name: test
    jobs:
      unit: {needs: [list], matrix: {part: "${{ json(needs.list.outputs.all) }}"}, %ssteps: [{run: make}]}
      report: {needs: [unit], steps: [{run: make}]}
"""


def known(text: object) -> dict[str, object]:
    """What expressions see once `list` has set its output."""
    outputs = {"list": {"outcome": "passed", "outputs": {"all": text}}}
    return {"needs": outputs, "run": {"id": 1, "url": ""}}


def came_to(text: object, more: str = "", *, only: str = "", lists: Lists | None = None) -> Expanded:
    origin = Origin((FILE % more).encode(), "headrace.yml", Event(), only=only)
    return expand_matrix(origin, [], lists or {}, "unit", known(text))


def problem(text: object, more: str = "") -> str:
    with pytest.raises(PipelineError) as refused:
        came_to(text, more)
    return str(refused.value)


def by_key(found: Expanded) -> dict[str, PlannedJob]:
    return {job.key: job for job in found.plan.jobs}


def test_values_keep_their_types_and_their_order():
    """A cell is what its values are: true is not the text."""
    found = came_to('["b", "a", 3, 2.5, true]')
    assert [each.matrix["part"] for each in found.cells] == ["b", "a", 3, 2.5, True]
    assert [type(each.matrix["part"]) for each in found.cells] == [str, str, int, float, bool]
    assert by_key(found)["report"].needs == ("unit", *(each.key for each in found.cells))
    assert all(each.needs == ("unit", "list") for each in found.cells)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "the matrix key `part`: a list is wanted, and this is a map"),
        ("null", "the matrix key `part`: a list is wanted, and this is nothing"),
        ('["a", ["b"]]', "value 2 of its list is a list; a value is a string, a number, true, false or null"),
        ('["a\\nb"]', "value 1 of its list is not one line of at most 200 characters"),
        (json.dumps(["x" * 201]), "value 1 of its list is not one line of at most 200 characters"),
        ("[NaN]", "value 1 of its list is no number that has an end"),
        ("[5000000000000000000]", "value 1 of its list is a number beyond 62 bits; hand it over as a string"),
        (json.dumps(list(range(1001))), "it gives 1,001 values; a key of a matrix takes at most 1,000"),
        ("[1, 1]", "the cell `[part=1]` stands there twice; each is made once"),
        ('[1, "1"]', "the cell `[part=1]` stands there twice; each is made once"),
        ("[null]", "a cell has null for every key of its matrix; give each a value to be called by"),
    ],
)
def test_what_is_no_list_of_values_is_refused_with_its_place(text, why):
    """Whoever reads it knows which expression, and what it gave."""
    told = problem(text)
    assert told.startswith("headrace.yml:9:")
    assert why in told


def test_the_bounds_of_a_run_hold_for_what_comes_later():
    """A small file and a long list make no more jobs, steps and expressions than a long file may."""
    hundreds = json.dumps(list(range(400)))
    assert "the pipeline has more than 1,000 jobs" in problem(hundreds, "parallel: 3, ")
    many = ", ".join(f'V{n}: "${{{{ matrix.part }}}}"' for n in range(200))
    assert "expressions by here" in problem(hundreds, f"env: {{{many}}}, ")
    long = "x" * 60_000
    assert "bytes of environment by here" in problem(hundreds, f"env: {{V: {long}}}, ")
    assert len(came_to(json.dumps(list(range(MAX_JOBS - 3)))).cells) == MAX_JOBS - 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


@given(st.text(max_size=50) | JSON.map(json.dumps) | st.lists(JSON, max_size=5).map(json.dumps) | JSON)
@example("[" * 100_000)
@example("9" * 10_000)
@example('["\\ud800"]')
@settings(max_examples=150, deadline=None)
def test_whatever_an_output_holds_gives_cells_or_a_mistake_with_its_place(text):
    """It comes from a job: a planner that fell over it would do so again and again."""
    problems = []
    try:
        found = came_to(text)
    except PipelineError as error:
        problems = [(each.file, each.line) for each in error.problems]
    else:
        assert bool(found.cells) is not bool(found.why_empty)
        assert len({each.key for each in found.cells}) == len(found.cells)
    assert set(problems) <= {("headrace.yml", 9)}


def test_one_job_with_its_needs_has_its_cells_too():
    """`headrace run --job unit` is about all of them; a cell is known to nobody yet."""
    assert list(by_key(came_to('["a"]', only="unit"))) == ["list", "unit", "unit[part=a]"]
    assert list(by_key(came_to('["a"]', only="report"))) == ["list", "unit", "unit[part=a]", "report"]
    with pytest.raises(PipelineError, match="no job `unit\\[part=a\\]`"):
        expand(load((FILE % "").encode(), "headrace.yml"), Event(), only="unit[part=a]")


def test_cells_are_called_alike_whatever_stands_beside_them():
    """A cell of `include` has the keys of the matrix, also when the matrix has no other cell."""
    text = (FILE % "").replace("matrix: {part", "matrix: {include: [{os: x, part: z}], part")
    for values, keys in (('["a"]', ["unit[part=a]", "unit[part=z,os=x]"]), ("[]", ["unit[part=z,os=x]"])):
        found = expand_matrix(Origin(text.encode(), "headrace.yml", Event()), [], {}, "unit", known(values))
        assert [each.key for each in found.cells] == keys


def test_a_fragment_is_planned_with_the_cells_that_there_are():
    """What it needs is every cell that the run has by then."""
    origin = Origin((FILE % "").encode(), "headrace.yml", Event())
    text = b"{stage: test, jobs: {more: {needs: [unit], steps: [{run: x}]}}}"
    found = extend(origin, [], text, "other", {"unit": {"part": ["a", "b"]}})
    assert found.jobs == {"more"}
    (more,) = [job for job in found.plan.jobs if job.key == "more"]
    assert more.needs == ("unit", "unit[part=a]", "unit[part=b]")


def test_cells_of_an_added_job_run_in_the_pool_of_the_job_that_adds_it():
    """A pool by the cell would be a way around that."""
    added = (
        b'{stage: test, jobs: {extra: {needs: [list], matrix: {part: "${{ json(needs.list.outputs.all) }}", '
        b'os: [default, big]}, pool: "${{ matrix.os }}", steps: [{run: x}]}}}'
    )
    origin = Origin((FILE % "").encode(), "headrace.yml", Event())
    assert extend(origin, [], added, "other").jobs == {"extra"}
    with pytest.raises(PipelineError, match="asks for the pool `big`, and the job that added it runs in `default`"):
        expand_matrix(origin, [Fragment(added, "other", "default")], {}, "extra", known('["a"]'))


def test_what_only_the_event_says_is_known_at_once():
    """Nobody has to wait for what is there."""
    text = FILE.replace("json(needs.list.outputs.all)", "branch == 'main' ? ['a'] : []") % ""
    pipeline = load(text.encode(), "headrace.yml")
    assert [job.key for job in expand(pipeline, Event(branch="main")).jobs if job.name == "unit"] == ["unit[part=a]"]
    (none,) = [job for job in expand(pipeline, Event(branch="x")).jobs if job.name == "unit"]
    assert none.skip == "its matrix is empty: `branch == 'main' ? ['a'] : []` gives no value for `part`"
