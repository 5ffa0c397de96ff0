"""What follows from outcomes, over random graphs: the counters must say what a look at the whole run would say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.core.events import AttemptEnded, AttemptReturned, AttemptStarted, Canceled, Unschedulable
from coordinator.core.plan import CannotRetry, retry
from coordinator.core.states import JOB_OVER, RUN_OVER, AttemptState, Cause, JobState, RunState
from tests.unit.core.graphs import Table, shapes

OUTCOMES = [
    AttemptState.PASSED,
    AttemptState.FAILED,
    AttemptState.TIMED_OUT,
    AttemptState.ERRORED,
    AttemptState.LOST,
    AttemptState.CANCELED,
]


class ARun(RuleBasedStateMachine):
    """Plays agents, people and faults against one run, in any order."""

    table: Table

    @initialize(shape=shapes())
    def create(self, shape):
        self.table = Table.made(shape)

    def _of(self, state):
        return sorted(job.id for job in self.table.jobs.values() if job.state is state)

    @precondition(lambda self: self._of(JobState.QUEUED))
    @rule(data=st.data())
    def start_some(self, data):
        chosen = data.draw(st.lists(st.sampled_from(self._of(JobState.QUEUED)), unique=True, min_size=1))
        self.table.queue -= set(chosen)
        self.table.apply(*((job, AttemptStarted()) for job in chosen))

    @precondition(lambda self: self._of(JobState.QUEUED))
    @rule(data=st.data())
    def return_one(self, data):
        job = data.draw(st.sampled_from(self._of(JobState.QUEUED)))
        self.table.queue.discard(job)
        self.table.apply((job, AttemptReturned(self.table.run.canceling)))

    @precondition(lambda self: self._of(JobState.QUEUED))
    @rule(data=st.data())
    def find_nobody_for(self, data):
        self.table.apply((data.draw(st.sampled_from(self._of(JobState.QUEUED))), Unschedulable("nobody")))

    @precondition(lambda self: self._of(JobState.RUNNING))
    @rule(data=st.data())
    def end_some_at_once(self, data):
        chosen = data.draw(st.lists(st.sampled_from(self._of(JobState.RUNNING)), unique=True, min_size=1))
        events = []
        for job in chosen:
            outcome = data.draw(st.sampled_from(OUTCOMES))
            events.append((job, AttemptEnded(outcome, Cause.ERRORED, "", canceling=self.table.run.canceling)))
        self.table.apply(*events)

    @precondition(lambda self: self.table.run.state not in RUN_OVER)
    @rule()
    def cancel(self):
        from dataclasses import replace

        self.table.run = replace(self.table.run, canceling=True)
        idle = [*self._of(JobState.WAITING), *self._of(JobState.BLOCKED), *sorted(self.table.queue)]
        self.table.apply(*((job, Canceled("enough")) for job in idle))

    @rule(data=st.data())
    def retry_something(self, data):
        table = self.table
        wanted = data.draw(st.sampled_from(["", *(job.key for job in table.jobs.values())]))
        before = dict(table.jobs)
        try:
            rows = retry(table.run, sorted(table.jobs.values(), key=lambda job: job.id), table.graph, wanted)
        except CannotRetry:
            return
        table.run, table.jobs = rows.run, dict(rows.jobs)
        table.gates = {gate.stage: gate for gate in rows.gates}
        table.queue |= set(rows.queued)
        touched = {key for key in before if before[key] != table.jobs[key]}
        assert touched
        for key in set(before) - touched:
            assert before[key] == table.jobs[key], "what it did not touch stays"

    @invariant()
    def counters_say_what_a_look_at_the_whole_run_says(self):
        table = self.table
        states = [job.state for job in table.jobs.values()]
        assert table.run.unfinished == sum(state not in JOB_OVER for state in states)
        assert table.run.active == sum(state in (JobState.QUEUED, JobState.RUNNING) for state in states)
        assert table.run.blocked == states.count(JobState.BLOCKED)
        assert table.run.canceled == states.count(JobState.CANCELED)
        for job in table.jobs.values():
            if job.state is not JobState.WAITING:
                continue
            dependencies = table.dependencies(job)
            open_ones = [each for each in dependencies if not each.over]
            assert open_ones, f"{job.key} waits for nothing"
            if job.id in table.graph.needs:
                assert job.unfinished == len(open_ones)

    @invariant()
    def nothing_runs_before_its_dependencies_have_ended_well(self):
        table = self.table
        for job in table.jobs.values():
            if job.state in (JobState.QUEUED, JobState.RUNNING):
                assert all(each.over and not each.counts_as_failed for each in table.dependencies(job)), job.key

    @invariant()
    def a_run_is_over_exactly_when_its_jobs_are(self):
        table = self.table
        over = all(job.over for job in table.jobs.values())
        assert (table.run.state in RUN_OVER) == over
        if table.run.state is RunState.PASSED:
            assert all(job.state is JobState.PASSED for job in table.jobs.values())

    @invariant()
    def only_queued_jobs_can_be_claimed(self):
        assert self.table.queue <= set(self._of(JobState.QUEUED))


TestARun = ARun.TestCase
TestARun.settings = settings(max_examples=75, stateful_step_count=30, deadline=None)


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
    return Table.made(([0, 0, 1], list(needs), [False, False, False]))


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
    table = Table.made(([0, 1], [None, None], [False, True]))
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
