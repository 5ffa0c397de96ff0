"""What a step adds to its run, over random graphs: afterwards all is as if it had stood in the file."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from coordinator.core.events import AttemptEnded, AttemptStarted
from coordinator.core.extend import Addition, CannotExtend, Standing, extend
from coordinator.core.job import Job
from coordinator.core.plan import Graph, gates_of
from coordinator.core.rules import Rules, survives
from coordinator.core.stages import Door, DoorState, Gate
from coordinator.core.states import RUN_OVER, AttemptState, Cause, JobState, RunState
from headrace.pipeline.plan import Approval
from headrace.pipeline.values import Expression
from tests.unit.core.graphs import Shape, Table
from tests.unit.core.test_follow import ARun

MOST = 24


@st.composite
def additions(draw, table: Table, parent: Job):
    """One to three jobs, in a new stage behind the present one, or in that or a later one."""
    is_new = draw(st.booleans())
    stage = parent.stage + 1 if is_new else draw(st.integers(parent.stage, table.graph.stages - 1))
    numbers = {job.id: job.stage + (is_new and job.stage >= stage) for job in table.jobs.values()}
    jobs, needs = [], {}
    doors = {old + (is_new and old >= stage): door for old, door in table.doors.items()}
    first = max(table.jobs) + 1
    for key in range(first, first + draw(st.integers(1, 3))):
        earlier = sorted(each for each, number in numbers.items() if number <= stage)
        if draw(st.booleans()):
            needs[key] = tuple(draw(st.lists(st.sampled_from(earlier), unique=True, max_size=4)))
        door = None if is_new else doors.get(stage)
        by_needs, stays = door is not None and key in needs, door is not None and survives(door.condition)
        rules = Rules(guarded=door is not None, by_needs=by_needs, stage_survives=stays)
        jobs.append(Job(key, f"j{key - 1}", stage, rules=rules))
        numbers[key] = stage
    return Addition(jobs, needs, frozenset({stage} if is_new else ()))


class AGrowingRun(ARun):
    """The same play with steps that add jobs and stages to their run."""

    @precondition(lambda self: self._of(JobState.RUNNING) and len(self.table.jobs) < MOST)
    @precondition(lambda self: not self.table.run.canceling)
    @rule(data=st.data())
    def add_something(self, data):
        parent = self.table.jobs[data.draw(st.sampled_from(self._of(JobState.RUNNING)))]
        addition = data.draw(additions(self.table, parent))
        before = {key: job for key, job in self.table.jobs.items() if job.state is not JobState.WAITING}
        queued = set(self.table.queue)
        try:
            self.table.extend(parent.id, addition)
        except CannotExtend:
            assert self.table.doors, "a door alone refuses"
            return
        assert {key: self.table.jobs[key].state for key in before} == {key: job.state for key, job in before.items()}
        assert queued <= self.table.queue, "nothing that could be claimed stops being so"

    @invariant()
    def gates_say_what_a_look_at_the_whole_run_says(self):
        self.table.check_gates()


TestAGrowingRun = AGrowingRun.TestCase
TestAGrowingRun.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def end(table: Table, job: int, outcome=AttemptState.PASSED) -> None:
    table.queue.discard(job)
    table.apply((job, AttemptEnded(outcome, Cause.STEP_FAILED, "", canceling=False)))


def begun(*, needs=(None, None, None)) -> Table:
    """Jobs 1 and 2 in the first stage, 3 in the second; 1 runs."""
    table = Table.made(Shape([0, 0, 1], list(needs), [False, False, False]))
    table.queue.discard(1)
    table.apply((1, AttemptStarted()))
    return table


def test_a_new_stage_stands_between_the_present_one_and_the_next():
    """What the file has after it waits for it: a deployment does not overtake the tests that were added."""
    table = begun()
    table.extend(1, Addition([Job(4, "added", 1)], {}, frozenset({1})))
    assert (table.jobs[3].stage, table.graph.stages) == (2, 3)
    for job in (1, 2):
        if job == 2:
            table.apply((2, AttemptStarted()))
        end(table, job)
    assert table.queue == {4}
    table.apply((4, AttemptStarted()))
    end(table, 4)
    assert table.queue == {3}


def test_a_job_added_to_the_present_stage_may_start_at_once():
    """The jobs of a stage run side by side, whenever they came."""
    table = begun()
    table.extend(1, Addition([Job(4, "added", 0)], {}))
    assert table.queue == {2, 4}


def test_a_job_added_behind_something_that_has_failed_already_is_skipped():
    """Needs that are over count as they would have counted then."""
    table = begun()
    table.apply((2, AttemptStarted()))
    end(table, 2, AttemptState.FAILED)
    table.extend(1, Addition([Job(4, "added", 0)], {4: (2,)}))
    assert (table.jobs[4].state, table.jobs[4].decider) == (JobState.SKIPPED, "j1")
    end(table, 1)
    assert table.run.state is RunState.FAILED


def test_a_run_does_not_end_before_what_was_added_at_its_last_moment():
    """The job that adds has not ended yet: nobody sees the run end in between."""
    table = Table.made(Shape([0], [None], [False]))
    table.queue.discard(1)
    table.apply((1, AttemptStarted()))
    table.extend(1, Addition([Job(2, "added", 1)], {}, frozenset({1})))
    end(table, 1)
    assert table.run.state not in RUN_OVER
    assert table.queue == {2}


APPROVAL = Approval(count=1, timeout_ms=1, message="")


def refused(table: Table, door: Door, stage: int) -> str:
    guarded = Rules(guarded=True)
    addition = Addition([Job(4, "added", stage, rules=guarded)], {}, guarded=frozenset({door.stage}))
    with pytest.raises(CannotExtend) as refusal:
        extend(table.standing(door=door), 1, addition)
    return str(refusal.value)


@pytest.mark.parametrize("state", [each for each in DoorState if each is not DoorState.CLOSED])
def test_nothing_is_added_to_a_stage_whose_approval_was_asked_or_given(state):
    """A person has approved the jobs that were there."""
    assert "`prod`" in refused(begun(), Door(1, "prod", state, approval=APPROVAL), 1)


def test_nothing_is_added_to_the_own_stage_once_it_was_approved():
    """Else one approved job could bring any others in."""
    assert "`prod`" in refused(begun(), Door(0, "prod", DoorState.OPEN, approval=APPROVAL), 0)


def test_nothing_is_added_to_a_run_that_is_being_canceled():
    """What would begin after a cancel is what the person did not want."""
    table = begun()
    table.run = replace(table.run, canceling=True)
    with pytest.raises(CannotExtend, match="canceled"):
        table.extend(1, Addition([Job(4, "added", 0)], {}))


def test_a_job_waits_for_the_door_of_a_stage_that_has_not_had_its_turn():
    """An approval that is still to come is asked for the added jobs too."""
    table = begun()
    door = Door(1, "prod", approval=APPROVAL)
    new = [Job(4, "free", 1, rules=Rules(guarded=True)), Job(5, "bound", 1, rules=Rules(guarded=True))]
    addition = Addition(new, {5: (2,)}, guarded=frozenset({1}))
    made = extend(table.standing(door=door), 1, addition)
    assert {key: job.unfinished for key, job in made.jobs.items()} == {4: 1, 5: 2}
    assert made.gates == {1: Gate(1, 4, guarded=True)}
    assert not made.events


def test_a_job_of_the_own_stage_does_not_wait_for_a_door_that_has_let_its_stage_in():
    """The `if` of the stage was judged, and true: the job that adds is running."""
    table = begun()
    door = Door(0, "s", DoorState.OPEN, condition=Expression("branch == 'main'", "1:1"))
    addition = Addition([Job(4, "added", 0, rules=Rules(guarded=True))], {}, guarded=frozenset({0}))
    made = extend(table.standing(door=door), 1, addition)
    assert made.jobs[4].unfinished == 0
    assert [key for key, _ in made.events] == [4]


def test_a_stage_gets_a_door_with_the_first_job_that_it_may_let_in():
    """A stage none of whose jobs could run asked nobody; with one that can it does."""
    table = begun()
    addition = Addition([Job(4, "added", 1, rules=Rules(guarded=True))], {}, guarded=frozenset({1}))
    made = extend(table.standing(), 1, addition)
    assert made.doors == {1}
    assert made.jobs[4].unfinished == 1


def test_what_the_first_stage_adds_moves_all_later_ones():
    """Numbers of stages are their order, nothing else."""
    graph = Graph(3, {})
    jobs = [Job(i + 1, f"j{i}", i) for i in range(3)]
    gates = gates_of(jobs, graph)
    run = Table.made(Shape([0, 1, 2], [None] * 3, [False] * 3)).run
    addition = Addition([Job(4, "a", 1), Job(5, "b", 2)], {}, frozenset({1, 2}))
    made = extend(Standing(run, jobs, graph, gates, {}), 1, addition)
    assert made.moved == {1: 3, 2: 4}
    assert {stage: gate.unfinished for stage, gate in made.gates.items()} == {1: 2, 2: 2}
