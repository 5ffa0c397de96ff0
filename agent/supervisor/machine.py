"""The life of one sandbox as (state, event) -> (state, effects). Pure: the time comes with the events.

`TABLE` says from where to where each event may lead; what is not in it is refused loudly. Times are milliseconds of
the boot clock, which goes on while the machine sleeps.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from agent.problems import Cause
from agent.supervisor import sentences

HELLO_MS: Final = 60_000
"""A sandbox that has not said hello by then did not start."""
BEGUN_MS: Final = 5_000
"""A step that has not begun by then: the control channel was taken, or no process could be started."""
REPEAT_MS: Final = 50
"""KILL is repeated: a fork may slip through one round."""
REPORT_MS: Final = 2_000
"""How long the control shell may take to report a step whose processes were killed; then it is killed too."""


class Phase(StrEnum):
    """Where a sandbox stands."""

    IDLE = "idle"
    LAUNCHING = "launching"
    WAITING = "waiting"
    STARTING = "starting"
    """A step was handed over, and has not said that it began."""
    RUNNING = "running"
    TERMED = "termed"
    """The step's processes were sent TERM, and have their grace."""
    KILLED = "killed"
    ENDING = "ending"
    """pid 1 was asked to leave, or killed."""
    ENDED = "ended"


class State(NamedTuple):
    """A sandbox, and the step that runs in it, if any."""

    phase: Phase = Phase.IDLE
    due: int | None = None
    """When `Ticked` will change something."""
    step: int | None = None
    grace_ms: int = 0
    timeout_ms: int = 0
    give_up: int = 0
    """KILLED: when pid 1 follows."""
    why: Cause | None = None
    """Why the step, or the sandbox, is being ended."""
    sentence: str = ""
    cancels: int = 0


class Launched(NamedTuple):
    """A sandbox was started; hello is awaited."""

    now: int


class Hello(NamedTuple):
    """The control shell waits."""

    greeted: bool = True


class Stepped(NamedTuple):
    """The agent wants a step run."""

    number: int
    timeout_ms: int
    grace_ms: int
    now: int


class Begun(NamedTuple):
    """The control shell says that the step begins."""

    now: int


class Missing(NamedTuple):
    """The control shell says that the step's shell or folder is not there. `done` follows."""

    cause: Cause
    sentence: str


class Done(NamedTuple):
    """The control shell says that the step ended. `oom`: what the cgroup says."""

    code: int
    oom: Cause | None = None


class Ticked(NamedTuple):
    """Time has passed. `full`: the limit of processes was met since the step was handed over."""

    now: int
    full: bool = False


class Canceled(NamedTuple):
    """Someone wants the step ended. The second one ends the sandbox."""

    grace_ms: int
    cause: Cause
    now: int


class Killed(NamedTuple):
    """The sandbox is to end, now."""

    cause: Cause
    sentence: str
    now: int


class Ended(NamedTuple):
    """The agent needs the sandbox no more."""

    now: int


class Died(NamedTuple):
    """pid 1 is dead, and all with it. `said`: what the starter wrote; `full`: the limit of processes was met."""

    oom: Cause | None = None
    full: bool = False
    said: str = ""


Event = Launched | Hello | Stepped | Begun | Missing | Done | Ticked | Canceled | Killed | Ended | Died


class Ready(NamedTuple):
    """Effect: the launch has succeeded."""

    greeted: bool = True


class LaunchFailed(NamedTuple):
    """Effect: the launch has failed."""

    sentence: str


class WriteRun(NamedTuple):
    """Effect: hand the step to the control shell."""

    number: int


class Signal(NamedTuple):
    """Effect: signal all processes of the sandbox but pid 1."""

    name: str


class KillSandbox(NamedTuple):
    """Effect: kill pid 1."""

    hard: bool = True


class SayEnd(NamedTuple):
    """Effect: ask the control shell to leave."""

    politely: bool = True


class Finish(NamedTuple):
    """Effect: the step has its result. `code` None: nobody reported one."""

    number: int
    code: int | None
    cause: Cause | None
    sentence: str


class Over(NamedTuple):
    """Effect: nothing of the sandbox is left."""

    cause: Cause | None
    sentence: str


Effect = Ready | LaunchFailed | WriteRun | Signal | KillSandbox | SayEnd | Finish | Over

_P = Phase
_RUN: Final = (_P.STARTING, _P.RUNNING, _P.TERMED, _P.KILLED)
TABLE: Final[dict[tuple[Phase, type[Event]], tuple[Phase, ...]]] = {
    (_P.IDLE, Launched): (_P.LAUNCHING,),
    (_P.LAUNCHING, Hello): (_P.WAITING,),
    (_P.WAITING, Stepped): (_P.STARTING,),
    (_P.STARTING, Begun): (_P.RUNNING,),
    (_P.TERMED, Begun): (_P.TERMED,),
    (_P.KILLED, Begun): (_P.KILLED,),
    **{(phase, Missing): (phase,) for phase in _RUN},
    **{(phase, Done): (_P.WAITING,) for phase in _RUN},
    # Time
    **{(phase, Ticked): (phase,) for phase in (_P.IDLE, _P.WAITING, _P.ENDING, _P.ENDED)},
    (_P.LAUNCHING, Ticked): (_P.LAUNCHING, _P.ENDING),
    (_P.STARTING, Ticked): (_P.STARTING, _P.ENDING),
    (_P.RUNNING, Ticked): (_P.RUNNING, _P.TERMED),
    (_P.TERMED, Ticked): (_P.TERMED, _P.KILLED),
    (_P.KILLED, Ticked): (_P.KILLED, _P.ENDING),
    # Being ended
    (_P.IDLE, Canceled): (_P.IDLE,),
    **{(phase, Canceled): (phase, _P.ENDING) for phase in (_P.LAUNCHING, _P.WAITING, _P.TERMED, _P.KILLED)},
    **{(phase, Canceled): (_P.TERMED, _P.ENDING) for phase in (_P.STARTING, _P.RUNNING)},
    (_P.IDLE, Killed): (_P.ENDED,),
    (_P.IDLE, Ended): (_P.ENDED,),
    **{(phase, event): (_P.ENDING,) for phase in (_P.LAUNCHING, _P.WAITING, *_RUN) for event in (Killed, Ended)},
    **{(phase, Died): (_P.ENDED,) for phase in (_P.LAUNCHING, _P.WAITING, *_RUN, _P.ENDING)},
    # Too late to change anything
    **{(_P.ENDING, event): (_P.ENDING,) for event in (Hello, Begun, Missing, Done, Canceled, Killed, Ended)},
    **{(_P.ENDED, event): (_P.ENDED,) for event in (Canceled, Killed, Ended)},
}


class IllegalTransition(Exception):
    """An event that cannot happen in this state: a mistake of ours, with its story."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"{event!r} cannot happen to a sandbox that is {state.phase}: {state!r}")


def step(state: State, event: Event) -> tuple[State, list[Effect]]:
    """What becomes of a sandbox, and what is to be done about it. Raises IllegalTransition."""
    if (targets := TABLE.get((state.phase, type(event)))) is None:
        raise IllegalTransition(state, event)
    after, effects = _step(state, event)
    assert after.phase in targets, (state, event, after)
    return after, effects


def _step(state: State, event: Event) -> tuple[State, list[Effect]]:
    match event:
        case Died():
            return _died(state, event)
        case Ticked(now):
            late = state.due is not None and now >= state.due
            return _ticked(state, event) if late else (state, [])
        case _ if state.phase is Phase.ENDED:
            return state, []
        case _ if state.phase is Phase.ENDING:
            return state, [KillSandbox()] if isinstance(event, Killed) else []
        case Launched() | Stepped() | Hello() | Begun() | Missing() | Done():
            return _going_on(state, event)
        case Canceled():
            return _canceled(state, event)
        case Killed(cause, sentence, now):
            return _end(state, cause, sentence, now)
        case Ended(now):
            return _ended(state, now)


def _going_on(state: State, event: Launched | Stepped | Hello | Begun | Missing | Done) -> tuple[State, list[Effect]]:
    match event:
        case Launched(now):
            return state._replace(phase=Phase.LAUNCHING, due=now + HELLO_MS), []
        case Hello():
            return state._replace(phase=Phase.WAITING, due=None), [Ready()]
        case Stepped():
            return _stepped(state, event)
        case Begun(now):
            return _begun(state, now)
        case Missing(cause, sentence):
            return (state if state.why else state._replace(why=cause, sentence=sentence)), []
        case Done():
            return _done(state, event)


def _stepped(state: State, event: Stepped) -> tuple[State, list[Effect]]:
    after = state._replace(
        phase=Phase.STARTING,
        step=event.number,
        due=event.now + BEGUN_MS,
        timeout_ms=event.timeout_ms,
        grace_ms=event.grace_ms,
        why=None,
        sentence="",
    )
    return after, [WriteRun(event.number)]


def _begun(state: State, now: int) -> tuple[State, list[Effect]]:
    if state.phase is not Phase.STARTING:  # it was canceled while it was being started
        return state, [Signal("TERM" if state.phase is Phase.TERMED else "KILL")]
    due = now + state.timeout_ms if state.timeout_ms else None
    return state._replace(phase=Phase.RUNNING, due=due), []


def _done(state: State, event: Done) -> tuple[State, list[Effect]]:
    assert state.step is not None
    if state.why:
        cause: Cause | None = state.why
        sentence = state.sentence
    elif event.code == 0:
        cause, sentence = None, ""
    elif event.oom:
        cause, sentence = event.oom, sentences.OOM[event.oom]
    else:
        cause, sentence = Cause.STEP_FAILED, sentences.told(event.code)
    effects: list[Effect] = [Finish(state.step, event.code, cause, sentence)]
    if state.phase is Phase.KILLED:
        effects.insert(0, Signal("KILL"))
    return state._replace(phase=Phase.WAITING, step=None, due=None, why=None, sentence=""), effects


def _canceled(state: State, event: Canceled) -> tuple[State, list[Effect]]:
    state = state._replace(cancels=state.cancels + 1)
    if state.phase is Phase.IDLE:
        return state, []
    if state.cancels > 1:
        return _end(state, Cause.CANCELED, "canceled a second time: everything was killed", event.now)
    if state.phase not in {Phase.STARTING, Phase.RUNNING}:
        return state, []
    sentence = "canceled" if event.cause is Cause.CANCELED else "the job ran out of time"
    return _term(state, event.cause, sentence, event.now, event.grace_ms)


def _term(state: State, cause: Cause, sentence: str, now: int, grace_ms: int) -> tuple[State, list[Effect]]:
    after = state._replace(phase=Phase.TERMED, due=now + grace_ms, why=cause, sentence=sentence)
    return after, [Signal("TERM")]


def _ticked(state: State, event: Ticked) -> tuple[State, list[Effect]]:
    now = event.now
    match state.phase:
        case Phase.LAUNCHING:
            said = f"the sandbox did not start within {HELLO_MS // 1000} s"
            return _end(state, Cause.ERRORED, said, now)
        case Phase.STARTING:
            return _end(state, Cause.CONTROL_TAKEN, sentences.FULL if event.full else sentences.TAKEN, now)
        case Phase.RUNNING:
            said = f"the step took longer than its timeout of {state.timeout_ms / 1000:g} s"
            return _term(state, Cause.STEP_TIMED_OUT, said, now, state.grace_ms)
        case Phase.TERMED:
            after = state._replace(phase=Phase.KILLED, due=now + REPEAT_MS, give_up=now + REPORT_MS)
            return after, [Signal("KILL")]
        case Phase.KILLED if now < state.give_up:
            return state._replace(due=now + REPEAT_MS), [Signal("KILL")]
        case Phase.KILLED:
            return _end(state, state.why or Cause.SANDBOX_KILLED, state.sentence, now)
        case Phase.ENDING:
            return state._replace(due=now + REPORT_MS), [KillSandbox()]
        case _:
            return state._replace(due=None), []


def _end(state: State, cause: Cause, sentence: str, now: int) -> tuple[State, list[Effect]]:
    """Kills the sandbox. A reason that is known already stays."""
    if state.phase is Phase.IDLE:
        return state._replace(phase=Phase.ENDED, due=None), [Over(cause, sentence)]
    effects: list[Effect] = [KillSandbox()]
    if state.phase is Phase.LAUNCHING:
        effects.insert(0, LaunchFailed(sentence))
    why, said = (state.why, state.sentence) if state.why else (cause, sentence)
    return state._replace(phase=Phase.ENDING, due=now + REPORT_MS, why=why, sentence=said), effects


def _ended(state: State, now: int) -> tuple[State, list[Effect]]:
    if state.phase is Phase.IDLE:
        return state._replace(phase=Phase.ENDED, due=None), [Over(None, "")]
    if state.phase is Phase.WAITING:
        return state._replace(phase=Phase.ENDING, due=now + REPORT_MS), [SayEnd()]
    return _end(state, Cause.CANCELED, "the sandbox was ended while the step ran", now)


def _died(state: State, event: Died) -> tuple[State, list[Effect]]:
    effects: list[Effect] = []
    cause, sentence = _why_died(state, event)
    if state.phase is Phase.LAUNCHING:
        effects.append(LaunchFailed(sentence))
    if state.step is not None:
        effects.append(Finish(state.step, None, cause, sentence))
    effects.append(Over(cause, sentence))
    return state._replace(phase=Phase.ENDED, step=None, due=None, why=cause, sentence=sentence), effects


def _why_died(state: State, event: Died) -> tuple[Cause | None, str]:
    if state.why or state.phase is Phase.ENDING:
        return state.why, state.sentence
    if state.phase is Phase.LAUNCHING:
        return Cause.ERRORED, f"the sandbox did not start{f': {event.said}' if event.said else ''}"
    if event.oom:
        return event.oom, f"{sentences.OOM[event.oom]}, and with it the sandbox"
    if event.full:
        return Cause.CONTROL_TAKEN, sentences.FULL
    return Cause.SANDBOX_KILLED, "the sandbox was killed, and not by Headrace"
