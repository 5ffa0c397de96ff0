"""What follows from outcomes, over random graphs: the counters must say what a look at the whole run would say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.core.events import AttemptEnded, AttemptReturned, AttemptStarted, DelayOver, Unschedulable
from coordinator.core.job import Place
from coordinator.core.plan import CannotRetry, active_cells, retry
from coordinator.core.rules import Rules
from coordinator.core.stages import CannotDecide, Decision, DoorState, Group, decided
from coordinator.core.states import JOB_OVER, RUN_OVER, AttemptState, Cause, JobState, RunState
from headrace.pipeline.values import Expression
from tests.unit.core.graphs import Shape, Table, shapes, shapes_with_rules

OUTCOMES = [
    AttemptState.PASSED,
    AttemptState.PASSED,
    AttemptState.FAILED,
    AttemptState.FAILED,
    AttemptState.TIMED_OUT,
    AttemptState.ERRORED,
    AttemptState.LOST,
    AttemptState.CANCELED,
]


class ARun(RuleBasedStateMachine):
    """Plays agents, people, time and faults against one run, in any order."""

    table: Table

    @initialize(shape=shapes_with_rules() | shapes())
    def create(self, shape):
        self.table = Table.made(shape)

    def _of(self, *states):
        return sorted(job.id for job in self.table.jobs.values() if job.state in states)

    def _claimable(self):
        return sorted(self.table.queue)

    def _claimed(self):
        return [key for key in self._of(JobState.QUEUED) if key not in self.table.queue]

    def _asked(self):
        return sorted(stage for stage, door in self.table.doors.items() if door.is_asked)

    @precondition(lambda self: self._claimable())
    @rule(data=st.data())
    def claim_some(self, data):
        self.table.queue -= set(data.draw(st.lists(st.sampled_from(self._claimable()), unique=True, min_size=1)))

    @precondition(lambda self: self._claimable() or self._claimed())
    @rule(data=st.data())
    def start_some(self, data):
        queued = self._of(JobState.QUEUED)
        chosen = data.draw(st.just(queued) | st.lists(st.sampled_from(queued), unique=True, min_size=1))
        self.table.queue -= set(chosen)
        self.table.apply(*((job, AttemptStarted()) for job in chosen))

    @precondition(lambda self: self._claimed())
    @rule(data=st.data())
    def return_one(self, data):
        job = data.draw(st.sampled_from(self._claimed()))
        self.table.apply((job, AttemptReturned(job in self.table.halting)))

    @precondition(lambda self: self._claimable())
    @rule(data=st.data())
    def find_nobody_for(self, data):
        self.table.apply((data.draw(st.sampled_from(self._claimable())), Unschedulable("nobody")))

    @precondition(lambda self: self._of(JobState.RUNNING))
    @rule(data=st.data())
    def end_some_at_once(self, data):
        chosen = data.draw(st.lists(st.sampled_from(self._of(JobState.RUNNING)), unique=True, min_size=1))
        events = []
        for job in chosen:
            outcome = data.draw(st.sampled_from(OUTCOMES))
            events.append((job, AttemptEnded(outcome, Cause.ERRORED, "", canceling=job in self.table.halting)))
        failed = {job.id for job in self.table.jobs.values() if job.has_failed}
        self.table.apply(*events)
        self._what_fail_fast_halts_ends(failed)

    @precondition(lambda self: self._of(JobState.QUEUED, JobState.RUNNING))
    @rule(data=st.data(), rounds=st.integers(1, 4))
    def let_agents_work(self, data, rounds):
        for _ in range(rounds):  # some rules are left out of each example: this one alone takes a run far
            if self._of(JobState.QUEUED):
                self.start_some(data)
            if self._of(JobState.RUNNING):
                self.end_some_at_once(data)
            self.nothing_waits_for_nothing()

    def _what_fail_fast_halts_ends(self, failed_before):
        table = self.table
        for group in table.groups.values():
            cells = [job for job in table.jobs.values() if job.rules.group == group.name]
            if group.fail_fast and any(job.has_failed and job.id not in failed_before for job in cells):
                left = [job.key for job in cells if not job.over and job.id not in table.halting]
                assert not left, f"{left} go on after a failure that ends the others"

    @precondition(lambda self: self.table.paused)
    @rule(data=st.data())
    def end_a_pause(self, data):
        self.table.apply((data.draw(st.sampled_from(sorted(self.table.paused))), DelayOver()))

    @precondition(lambda self: self._asked())
    @rule(data=st.data(), who=st.sampled_from(["ana", "bo"]), approved=st.sampled_from([True, True, False]))
    def decide(self, data, who, approved):
        stage = data.draw(st.sampled_from(self._asked()))
        try:
            door = decided(self.table.doors[stage], Decision(who, approved))
        except CannotDecide:
            return
        self.table.doors[stage] = door
        if not door.is_asked:
            self.table.apply(doors=(stage,))

    @precondition(lambda self: self._asked())
    @rule(data=st.data(), really=st.booleans())
    def let_an_approval_expire(self, data, really):
        if not really:
            return
        stage = data.draw(st.sampled_from(self._asked()))
        self.table.doors[stage] = replace(self.table.doors[stage], state=DoorState.EXPIRED)
        self.table.apply(doors=(stage,))

    @precondition(lambda self: self.table.run.state not in RUN_OVER)
    @rule(really=st.sampled_from([False] * 5 + [True]))
    def cancel(self, really):
        if really:  # seldom, or few runs would come far
            self.table.cancel()

    @rule(data=st.data())
    def retry_something(self, data):
        table = self.table
        wanted = data.draw(st.sampled_from(["", *(job.key for job in table.jobs.values())]))
        before = {key: (job.state, job.tries) for key, job in table.jobs.items() if job.over}
        asked = {stage: door.decisions for stage, door in table.doors.items() if door.is_asked}
        try:
            table.retry(wanted)
        except CannotRetry:
            assert asked == {stage: door.decisions for stage, door in table.doors.items() if door.is_asked}
            return
        assert all(table.jobs[key].tries == tries for key, (_, tries) in before.items())

    @invariant()
    def counters_say_what_a_look_at_the_whole_run_says(self):
        table = self.table
        states = [job.state for job in table.jobs.values()]
        assert table.run.unfinished == sum(state not in JOB_OVER for state in states)
        assert table.run.active == sum(state in (JobState.QUEUED, JobState.RUNNING) for state in states)
        assert table.run.blocked == states.count(JobState.BLOCKED)
        assert table.run.canceled == sum(
            job.state is JobState.CANCELED and not job.has_vanished for job in table.jobs.values()
        )
        assert table.run.failed == sum(job.has_failed for job in table.jobs.values())
        for gate in table.gates.values():
            before = [job for job in table.jobs.values() if job.stage <= gate.stage]
            if gate.unfinished == 0:
                assert all(job.over for job in before)
                assert gate.failed == sum(job.counts_as_failed for job in before)
                assert gate.upstream_failed == any(job.has_failed for job in before)
            else:
                assert not all(job.over for job in before)
        for job in table.jobs.values():
            if job.state is JobState.WAITING and job.id in table.graph.needs and not job.rules.guarded:
                held = job.id in table.paused or job.place is Place.HELD or job.is_expanding
                assert job.unfinished == sum(not each.over for each in table.dependencies(job)) + held

    @invariant()
    def a_group_knows_its_active_cells_and_has_no_more_than_it_may(self):
        table = self.table
        active = active_cells(table.jobs.values())
        assert active == {name: group.active for name, group in table.groups.items() if name in active or group.active}
        for group in table.groups.values():
            cells = [job for job in table.jobs.values() if job.rules.group == group.name]
            begun = [job for job in cells if job.state in (JobState.QUEUED, JobState.RUNNING)]
            begun += [job for job in cells if job.id in table.paused]
            assert not group.max_parallel or len(begun) <= group.max_parallel
            assert len(begun) <= group.active

    @invariant()
    def nothing_waits_for_nothing(self):
        table = self.table
        for job in table.jobs.values():
            if job.awaits and not job.over:
                assert table.doors[job.stage].is_asked, f"{job.key} waits for an approval that nobody is asked for"
            elif job.state is JobState.WAITING and job.id not in table.paused and not job.is_expanding:
                if job.place is Place.HELD:
                    group = table.groups[job.rules.group]
                    assert group.active >= group.max_parallel > 0, f"{job.key} waits for a place that is free"
                else:
                    assert any(not each.over for each in table.holders(job)), f"{job.key} waits for nothing"
        for stage in self._asked():
            jobs = [job for job in table.jobs.values() if job.stage == stage]
            assert any(job.awaits and not job.over for job in jobs), "somebody is asked, and nobody waits"

    @invariant()
    def no_job_has_begun_whose_stage_nobody_has_let_in(self):
        table = self.table
        for job in table.jobs.values():
            if job.rules.guarded and (job.state in (JobState.QUEUED, JobState.RUNNING) or job.id in table.paused):
                door = table.doors[job.stage]
                before = [each for each in table.jobs.values() if each.stage < job.stage]
                text = door.condition.text if door.condition else "success()"
                assert door.state is DoorState.OPEN, job.key
                assert not door.approval or sum(each.approved for each in door.decisions) >= door.approval.count
                assert text != "success()" or not any(each.counts_as_failed for each in before), job.key
                assert text != "failure()" or any(each.has_failed for each in before), job.key

    @invariant()
    def nothing_runs_against_its_condition(self):
        table = self.table
        for job in table.jobs.values():
            if job.state not in (JobState.QUEUED, JobState.RUNNING):
                continue
            dependencies = table.above(job)
            assert all(each.over for each in dependencies), job.key
            text = job.rules.condition.text if job.rules.condition else ""
            if text == "success()" or (not text and not job.rules.trust_the_door):
                assert not any(each.counts_as_failed for each in dependencies), job.key
            if text == "failure()":
                assert table.failed_above(job), job.key

    @invariant()
    def a_run_is_over_exactly_when_its_jobs_are_and_has_their_outcome(self):
        table = self.table
        jobs = list(table.jobs.values())
        assert (table.run.state in RUN_OVER) == all(job.over for job in jobs)
        if table.run.state is RunState.PASSED:
            canceled = (job for job in jobs if job.state is JobState.CANCELED)
            assert all(job.has_vanished for job in canceled)
            assert not any(job.has_failed for job in jobs)
        if table.run.state is RunState.FAILED:
            assert any(job.has_failed for job in jobs)
        if table.run.state is RunState.CANCELED:
            assert any(job.state is JobState.CANCELED for job in jobs)

    @invariant()
    def only_queued_jobs_can_be_claimed(self):
        assert self.table.queue <= set(self._of(JobState.QUEUED))


TestARun = ARun.TestCase
TestARun.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(shapes())
@settings(max_examples=75, deadline=None)
def test_a_run_whose_jobs_all_pass_runs_every_job_once_and_passes(shape):
    """Nothing is forgotten and nothing is started twice, whatever the graph."""
    table = Table.made(shape)
    begun = []
    while table.queue:
        wave = sorted(table.queue)
        table.queue.clear()
        begun += wave
        table.apply(*((job, AttemptStarted()) for job in wave))
        table.apply(*((job, AttemptEnded(AttemptState.PASSED, Cause.NONE, "", canceling=False)) for job in wave))
    assert sorted(begun) == sorted(table.jobs)
    assert table.run.state is RunState.PASSED


def two_stages(*, needs=(None, None, None)):
    return Table.made(Shape([0, 0, 1], list(needs), [False, False, False]))


def end(table, job, outcome=AttemptState.PASSED):
    table.queue.discard(job)
    table.apply((job, AttemptStarted()))
    table.apply((job, AttemptEnded(outcome, Cause.STEP_FAILED, "", canceling=False)))


def test_a_stage_starts_when_all_jobs_of_the_stages_before_it_have_passed():
    """The order of stages is the order of the file."""
    table = two_stages()
    end(table, 1)
    assert table.jobs[3].state is JobState.WAITING
    end(table, 2)
    assert table.queue == {3}


def test_a_job_with_needs_does_not_wait_for_its_stage():
    """`needs` replaces the wait: the slow job of the first stage holds nobody up who does not need it."""
    table = two_stages(needs=(None, None, (0,)))
    end(table, 1)
    assert 3 in table.queue


@pytest.mark.parametrize("needs", [(None, None, None), (None, None, (0,))], ids=["by stage", "by need"])
def test_what_follows_a_failure_is_skipped_and_the_run_failed(needs):
    """A job skipped because of a dependency counts as failed for what follows it."""
    table = two_stages(needs=needs)
    end(table, 1, AttemptState.FAILED)
    end(table, 2)
    assert (table.jobs[3].state, table.jobs[3].decider) == (JobState.SKIPPED, "j0")
    assert table.run.state is RunState.FAILED


def test_a_retry_of_the_failed_job_runs_what_was_skipped_because_of_it():
    """`headrace retry RUN JOB`: what depends on it runs again, what it did not touch stays as it is."""
    table = two_stages()
    end(table, 1, AttemptState.FAILED)
    end(table, 2)
    rows = retry(table.run, list(table.jobs.values()), table.graph, "j0")
    assert rows.queued == (1,)
    assert rows.jobs[2].state is JobState.PASSED
    assert rows.jobs[3].state is JobState.WAITING
    assert rows.run.state is RunState.RUNNING


def test_a_deployment_downstream_of_a_retry_asks_a_person_again():
    """A retry runs up to, not through, the next deployment."""
    table = Table.made(Shape([0, 1], [None, None], [False, True]))
    end(table, 1)
    end(table, 2)
    rows = retry(table.run, list(table.jobs.values()), table.graph, "j0")
    table.run, table.jobs = rows.run, dict(rows.jobs)
    table.gates = {gate.stage: gate for gate in rows.gates}
    end(table, 1)
    assert table.jobs[2].state is JobState.BLOCKED
    assert table.run.state is RunState.BLOCKED
    named = retry(table.run, list(table.jobs.values()), table.graph, "j1")
    assert named.queued == (2,)


def test_retrying_a_job_whose_dependency_failed_says_which_one_to_retry():
    """A job that would only be skipped again is no retry."""
    table = two_stages()
    end(table, 1, AttemptState.FAILED)
    end(table, 2)
    with pytest.raises(CannotRetry, match="`j0`"):
        retry(table.run, list(table.jobs.values()), table.graph, "j2")


def test_a_place_goes_to_a_cell_that_still_waits_for_one():
    """Not to one that the same cancel ends: the other would wait for ever."""
    cells = [Rules(group="cells"), Rules(group="cells"), Rules(Expression("always()"), group="cells")]
    groups = {"cells": Group("cells", 1, fail_fast=False)}
    table = Table.made(Shape([0, 0, 0], [None] * 3, [False] * 3, cells, groups=groups))
    table.cancel()
    assert [job.state for job in table.jobs.values()] == [JobState.CANCELED, JobState.CANCELED, JobState.QUEUED]


def test_two_cells_that_end_at_once_give_their_places_to_two():
    """Reports come in batches: the second must not call the cell that the first has called."""
    groups = {"cells": Group("cells", 2, fail_fast=False)}
    table = Table.made(Shape([0] * 5, [None] * 5, [False] * 5, [Rules(group="cells")] * 5, groups=groups))
    table.queue.clear()
    table.apply((1, AttemptStarted()), (2, AttemptStarted()))
    passed = AttemptEnded(AttemptState.PASSED, Cause.NONE, "", canceling=False)
    table.apply((1, passed), (2, passed))
    assert table.queue == {3, 4}
    assert table.groups["cells"].active == 2
