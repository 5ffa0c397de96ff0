"""The life of a sandbox: every (state, event) pair, and whole lives in any order under a clock that jumps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.problems import Cause
from agent.supervisor import machine
from agent.supervisor.deadline import GONE_MS, MARGIN_MS, Terms, overdue
from agent.supervisor.machine import TABLE, IllegalTransition, Phase, State, step

NOW = 1_000_000
EVENTS: list[machine.Event] = [
    machine.Launched(NOW),
    machine.Hello(),
    machine.Stepped(1, 2000, 500, NOW),
    machine.Begun(NOW),
    machine.Missing(Cause.SHELL_MISSING, "no bash"),
    machine.Done(3),
    machine.Ticked(NOW),
    machine.Canceled(500, Cause.CANCELED, NOW),
    machine.Killed(Cause.SANDBOX_KILLED, "killed", NOW),
    machine.Ended(NOW),
    machine.Died(),
]
RUNNING = {Phase.STARTING, Phase.RUNNING, Phase.TERMED, Phase.KILLED}


def standing(phase: Phase, *, due: int | None = NOW) -> State:
    running = phase in RUNNING
    return State(phase, due=due, step=1 if running else None, timeout_ms=2000, grace_ms=500, give_up=NOW + 2000)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("phase", Phase)
def test_every_pair_leads_where_the_table_says_or_is_refused(phase: Phase, event: machine.Event) -> None:
    """No event falls through: what cannot happen is refused with the whole story."""
    state = standing(phase)
    if (phase, type(event)) not in TABLE:
        with pytest.raises(IllegalTransition, match=phase.value):
            step(state, event)
        return
    after, effects = step(state, event)
    assert after.phase in TABLE[phase, type(event)]
    finished = [effect for effect in effects if isinstance(effect, machine.Finish)]
    assert len(finished) == (state.step is not None and after.step is None)
    assert [type(e) for e in effects].count(machine.Over) == (after.phase is Phase.ENDED and phase is not Phase.ENDED)


def test_every_target_in_the_table_can_be_reached() -> None:
    """A row that nothing leads along is a lie in the diagram."""
    found = set()
    for phase, kind in TABLE:
        for event in [event for event in EVENTS if isinstance(event, kind)]:
            for due in (None, NOW + 1, NOW):
                for cancels in (0, 1):
                    for give_up in (0, NOW + 2000):
                        state = standing(phase, due=due)._replace(cancels=cancels, give_up=give_up)
                        found.add((phase, kind, step(state, event)[0].phase))
    assert found == {(phase, kind, target) for (phase, kind), targets in TABLE.items() for target in targets}


def test_a_timeout_is_term_then_kill_until_the_shell_reports_then_the_sandbox() -> None:
    """Cleaning steps are to run: only a control shell that says nothing costs the sandbox."""
    state, effects = step(standing(Phase.RUNNING), machine.Ticked(NOW))
    assert (state.phase, effects, state.due) == (Phase.TERMED, [machine.Signal("TERM")], NOW + 500)
    told = []
    while state.phase is not Phase.ENDING and state.due is not None:
        at = state.due
        state, effects = step(state, machine.Ticked(at))
        told += effects
    assert told == [machine.Signal("KILL")] * (len(told) - 1) + [machine.KillSandbox()]
    assert NOW + 500 + machine.REPORT_MS <= at <= NOW + 500 + machine.REPORT_MS + machine.REPEAT_MS
    _, effects = step(state, machine.Died())
    assert effects[0] == machine.Finish(1, None, Cause.STEP_TIMED_OUT, state.sentence)


def test_what_a_killed_step_has_left_is_killed_once_more() -> None:
    """A process may have been forked between the last round and the report."""
    state, effects = step(standing(Phase.KILLED), machine.Done(137))
    assert state.phase is Phase.WAITING
    assert effects[0] == machine.Signal("KILL")


@pytest.mark.parametrize(
    ("done", "cause"),
    [
        (machine.Done(0), None),
        (machine.Done(0, Cause.OOM), None),
        (machine.Done(137), Cause.STEP_FAILED),
        (machine.Done(137, Cause.OOM), Cause.OOM),
        (machine.Done(1, Cause.HOST_OOM), Cause.HOST_OOM),
    ],
)
def test_want_of_memory_is_named_only_for_a_step_that_failed(done: machine.Done, cause: Cause | None) -> None:
    """A kill that the step survived is no failure, and a plain 137 is no want of memory."""
    _, effects = step(standing(Phase.RUNNING), done)
    assert isinstance(effects[0], machine.Finish)
    assert (effects[0].code, effects[0].cause) == (done.code, cause)


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 12_000)), max_size=60))
def test_any_life_finishes_each_step_once_and_ends_once(moves: list[tuple[machine.Event, int]]) -> None:
    """Whatever the order of what comes from the job, the agent and the clock."""
    state, now, begun, finished, over, launches = State(), NOW, 0, 0, 0, 0
    for template, pause in moves:
        now += pause
        event = template._replace(now=now) if "now" in template._fields else template  # type: ignore[call-arg]  # those have it
        if (state.phase, type(event)) not in TABLE:
            continue
        before = state
        state, effects = step(state, event)
        begun += sum(isinstance(e, machine.WriteRun) for e in effects)
        finished += sum(isinstance(e, machine.Finish) for e in effects)
        over += sum(isinstance(e, machine.Over) for e in effects)
        launches += sum(isinstance(e, machine.Ready | machine.LaunchFailed) for e in effects)
        assert before.phase is not Phase.ENDED or not effects
        assert launches <= 1
    assert begun - finished == (state.step is not None)
    assert over == (state.phase is Phase.ENDED)


def test_a_step_that_cannot_begin_says_which_of_the_two_it_was() -> None:
    """The limit of processes is the job's to raise; a taken channel is a job that meddles."""
    for full, words in ((True, "limit of processes"), (False, "control channel")):
        state, effects = step(standing(Phase.STARTING), machine.Ticked(NOW, full))
        assert (effects, state.why) == ([machine.KillSandbox()], Cause.CONTROL_TAKEN)
        assert words in state.sentence


@given(st.sampled_from([p for p in Phase if p is not Phase.ENDED]))
def test_a_killed_sandbox_is_killed_again_until_it_is_dead(phase: Phase) -> None:
    """One signal that got lost must not let a job live for ever."""
    state, _ = step(standing(phase), machine.Killed(Cause.SANDBOX_KILLED, "late", NOW))
    while state.phase is Phase.ENDING:
        assert state.due is not None
        state, effects = step(state, machine.Ticked(state.due))
        assert effects == [machine.KillSandbox()]
        state, _ = step(state, machine.Died())
    assert state.phase is Phase.ENDED


def test_at_least_once_ends_without_its_agent_and_not_without_its_coordinator() -> None:
    """An outage of the coordinator costs nobody a job."""
    terms = Terms(30_000, at_most_once=False, grace_ms=10_000, heartbeat_sent=0, heard=NOW)
    assert overdue(terms, NOW + 30_000 + GONE_MS - 1) is None
    assert overdue(terms, NOW + 30_000 + GONE_MS) == (
        Cause.SANDBOX_KILLED,
        "the sandbox was ended because its agent was gone",
    )


def test_at_most_once_ends_before_anybody_may_start_it_again() -> None:
    """The lease is counted from when the heartbeat was sent, and grace and margin fit into it."""
    terms = Terms(600_000, at_most_once=True, grace_ms=10_000, heartbeat_sent=NOW, heard=NOW)
    end = NOW + 600_000 - 10_000 - MARGIN_MS
    assert overdue(terms._replace(heard=end), end - 1) is None
    assert overdue(terms._replace(heard=end), end) is not None


def test_the_jobs_own_deadline_holds_in_both_cases() -> None:
    """It is compared with the boot clock: a machine that slept has not stopped it."""
    for once in (True, False):
        terms = Terms(600_000, at_most_once=once, grace_ms=0, deadline=NOW, heartbeat_sent=NOW, heard=NOW)
        assert overdue(terms, NOW - 1) is None
        assert overdue(terms, NOW) == (Cause.JOB_TIMED_OUT, "the job ran out of time")
