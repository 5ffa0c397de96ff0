"""Matrices that become known while a run goes on, over random graphs: afterwards all is as if they had been known."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from coordinator.core.events import AttemptEnded, AttemptStarted
from coordinator.core.expansion import MOST_ROWS, Cells
from coordinator.core.facts import Ended, needs_of
from coordinator.core.job import Job
from coordinator.core.rules import NO_RULES, Rules, Verdict
from coordinator.core.stages import Group
from coordinator.core.states import AttemptState, Cause, JobState, RunState
from headrace.pipeline.values import Expression
from tests.unit.core.graphs import CONDITIONS, Shape, Table, shapes, shapes_with_rules
from tests.unit.core.test_follow import ARun

ALWAYS = Expression("always()")
EMPTY = Verdict(Cause.SKIPPED_BY_CONDITION, "its matrix is empty")
BROKEN = Verdict(Cause.EXPRESSION_FAILED, "it is no list")


@st.composite
def shapes_to_expand(draw):
    """Runs of which one to three jobs stand for cells, and the conditions that these cells have."""
    shape = draw(shapes_with_rules() | shapes())
    rules = list(shape.rules or [NO_RULES] * len(shape.stages))
    free = [i for i, each in enumerate(rules) if not each.group]
    conditions = {}
    for i in draw(st.lists(st.sampled_from(free), unique=True, max_size=3)) if free else ():
        always = draw(st.booleans())
        rules[i] = replace(rules[i], expands=True, retry=None, condition=ALWAYS if always else None)
        conditions[i + 1] = draw(st.sampled_from(("", *CONDITIONS))) if always else ""
    groups = {
        f"j{key - 1}": Group(f"j{key - 1}", *draw(st.sampled_from([(1, False), (0, True)]))) for key in conditions
    }
    return replace(shape, rules=rules, groups={**shape.groups, **groups}), conditions


def cells(table: Table, expander: int, values: str, condition: str = "", *, grouped: bool = False) -> Cells:
    """What a store makes of a matrix with these values."""
    by, graph = table.jobs[expander], table.graph
    own = graph.needs.get(expander)
    ids = {job.key: job.id for job in table.jobs.values()}
    fresh = max(table.jobs)
    rules = Rules(
        condition=Expression(condition) if condition else None,
        allow_failure=by.rules.allow_failure,
        group=by.key if grouped else "",
        guarded=by.rules.guarded,
        by_needs=by.rules.guarded and own is not None,
        stage_survives=by.rules.stage_survives,
        expander=by.key,
        by_stages=own is None,
    )
    new, keys = [], [f"{by.key}[{value}]" for value in values]
    for key in keys:
        if key not in ids:
            fresh += 1
            ids[key] = fresh
            new.append(Job(fresh, key, by.stage, at_most_once=by.at_most_once, rules=rules))
    needs = {ids[key]: (expander, *(own or ())) for key in keys}
    for key, found in graph.needs.items():
        if expander in found and table.jobs[key].rules.expander != by.key:
            needs[key] = (*found, *(ids[each] for each in keys if ids[each] not in found))
    for key in needs:
        if table.jobs.get(key, by).rules.expander == by.key:  # what the job needs may have got cells of its own
            needs[key] = (expander, *(own or ()))
    verdict = Verdict() if values else EMPTY
    return Cells({key: key for key in keys}, new, needs, verdict)


class AnExpandingRun(ARun):
    """The same play with jobs whose cells come when their turn has come, again after each retry."""

    @initialize(made=shapes_to_expand())
    def create(self, made):
        shape, self.conditions = made
        self.table = Table.made(shape)

    def _due(self):
        return sorted(job.id for job in self.table.jobs.values() if job.is_expanding)

    @precondition(lambda self: self._due())
    @rule(data=st.data(), values=st.sampled_from(["", "a", "ab", "abc", "b", "bc", "c", "?"]))
    def expand_one(self, data, values):
        table = self.table
        key = data.draw(st.sampled_from(self._due()))
        before = {each: job.tries for each, job in table.jobs.items()}
        if values == "?":
            table.expand(key, Cells({}, (), {}, BROKEN))
            assert table.jobs[key].state is JobState.FAILED
            return
        by = table.jobs[key]
        table.expand(key, cells(table, key, values, self.conditions[key], grouped=True))
        assert table.jobs[key].state is (JobState.PASSED if values else JobState.SKIPPED)
        mine = {job.key: job for job in table.jobs.values() if job.rules.expander == by.key}
        assert {f"{by.key}[{value}]" for value in values} <= set(mine)
        for name, job in mine.items():
            gone = name not in {f"{by.key}[{value}]" for value in values}
            assert job.has_vanished is gone or (gone and job.over), name
            assert job.tries == before.get(job.id, 0)

    @rule(data=st.data())
    def go_on(self, data):
        if self._due():
            self.expand_one(data, data.draw(st.sampled_from(["a", "ab", "bc"])))
        elif self._of(JobState.QUEUED, JobState.RUNNING):
            self.let_agents_work(data, 1)

    @invariant()
    def cells_wait_until_their_job_has_been_expanded(self):
        jobs = {job.key: job for job in self.table.jobs.values()}
        for job in jobs.values():
            if job.rules.expander and (job.state in (JobState.QUEUED, JobState.RUNNING) or job.id in self.table.paused):
                assert jobs[job.rules.expander].state is JobState.PASSED, job.key

    @invariant()
    def what_stands_for_others_never_runs(self):
        for job in self.table.jobs.values():
            assert (
                not job.rules.expands
                or job.state not in (JobState.QUEUED, JobState.RUNNING, JobState.BLOCKED)
                or job.awaits
            )

    @invariant()
    def gates_say_what_a_look_at_the_whole_run_says(self):
        self.table.check_gates()


TestAnExpandingRun = AnExpandingRun.TestCase
TestAnExpandingRun.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def made(*, needs=(None, (0,), (1,)), deploys=False) -> Table:
    """`j0`, then `j1` that stands for cells, then `j2` that needs it."""
    rules = [NO_RULES, Rules(expands=True), NO_RULES]
    return Table.made(Shape([0, 0, 0], list(needs), [False, deploys, False], rules))


def end(table: Table, job: int, outcome=AttemptState.PASSED) -> None:
    table.queue.discard(job)
    table.apply((job, AttemptStarted()))
    table.apply((job, AttemptEnded(outcome, Cause.STEP_FAILED, "", canceling=False)))


def test_what_needs_the_matrix_waits_for_every_cell_of_it():
    """Not only for the moment when they are known."""
    table = made()
    end(table, 1)
    assert table.jobs[2].is_expanding
    table.expand(2, cells(table, 2, "ab"))
    assert (table.queue, table.jobs[3].unfinished) == ({4, 5}, 2)
    end(table, 4)
    end(table, 5)
    assert table.queue == {3}


def test_a_cell_that_vanished_counts_for_nothing_in_the_outcome_of_its_run():
    """Who gave the matrix fewer values meant it."""
    table = made()
    end(table, 1)
    table.expand(2, cells(table, 2, "ab"))
    for job in (4, 5, 3):
        end(table, job)
    table.retry("j0")
    end(table, 1)
    assert not table.queue
    table.expand(2, cells(table, 2, "a"))
    end(table, 4)
    end(table, 3)
    assert (table.jobs[5].cause, table.run.state) == (Cause.CELL_VANISHED, RunState.PASSED)


def test_a_cell_that_is_back_is_waited_for_again():
    """Its followers have known it all the time, as one that is over."""
    table = made()
    for values, ended in (("a", (4, 3)), ("b", (5, 3)), ("a", (4,))):
        if table.run.state is RunState.PASSED:
            table.retry("j0")
        end(table, 1)
        table.expand(2, cells(table, 2, values))
        assert table.queue == {ended[0]}
        for job in ended:
            end(table, job)
    assert table.queue == {3}


def test_a_run_keeps_no_more_cells_than_it_may_however_often_it_is_retried():
    """Each retry may give a thousand other values."""
    table = made()
    end(table, 1)
    many = [Job(number, f"j1[{number}]", 0, rules=Rules(expander="j1")) for number in range(4, 4 + MOST_ROWS)]
    found = Cells({job.key: job.key for job in many}, many, {job.id: (2,) for job in many})
    table.expand(2, found)
    assert table.jobs[2].state is JobState.FAILED
    assert "keeps at most 5,000" in table.jobs[2].sentence


def test_needs_tell_of_the_cells_and_not_of_what_stands_for_them():
    """A matrix is one thing for whoever needs it, whenever its values were known."""
    cell = '{"matrix": {"n": 1}, "shard": null}'
    stands = Ended("unit", JobState.PASSED, expands=True)
    found = needs_of([stands, Ended("unit", JobState.FAILED, cell, '{"a": "b"}')])
    assert found == {
        "unit": {"outcome": "failed", "cells": [{"matrix": {"n": 1}, "outcome": "failed", "outputs": {"a": "b"}}]}
    }
    assert needs_of([replace(stands, state=JobState.SKIPPED)]) == {"unit": {"outcome": "skipped", "cells": []}}
