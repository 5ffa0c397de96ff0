"""The wire of agents and the words of dispatch: pure translation, both ways."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from coordinator.core.matching import Ability
from coordinator.core.states import ATTEMPT_OUTCOMES, AttemptState, Cause
from coordinator.dispatch.dispatcher import Timing
from coordinator.dispatch.port import EndedReport, Held, Hello, Opened, Report, StartedReport
from coordinator.dispatch.session import (
    Answered,
    Assign,
    Beaten,
    CancelThese,
    DrainIt,
    Outgoing,
    Permitted,
    SendAway,
)
from coordinator.errors import BadInput
from headrace.v1 import agent_pb2 as wire
from headrace.v1 import common_pb2 as common

MOST_SLOTS = 1_000
MOST_LABELS = 64
MOST_NAME = 100
MOST_SENTENCE = 500
# What a bigint holds.
_MOST_NUMBER = (1 << 63) - 1
_MOST_CORES = 1e6


def state_word(value: int) -> str:
    """`ATTEMPT_STATE_TIMED_OUT` as `timed_out`."""
    return common.AttemptState.Name(value).removeprefix("ATTEMPT_STATE_").lower()  # type: ignore[arg-type]


def cause_of(value: int) -> Cause:
    """A cause of the wire; one that this version does not know counts as the machinery's."""
    try:
        word = common.Cause.Name(value).removeprefix("CAUSE_").lower()  # type: ignore[arg-type]
        return Cause.NONE if word == "unspecified" else Cause(word)
    except ValueError:
        return Cause.ERRORED


def cause_value(cause: str) -> common.Cause.ValueType:
    """A cause of the core, on the wire."""
    return common.Cause.Value(f"CAUSE_{cause.upper()}") if cause else common.CAUSE_UNSPECIFIED


def hello_of(message: wire.Hello) -> Hello:
    """Checks and takes over what an agent says of itself. Raises BadInput: such a Hello can never be right."""
    if not 0 < len(message.name) <= MOST_NAME or not message.name.isprintable():
        raise BadInput(f"an agent's name is 1 to {MOST_NAME} printable characters: set another with --name")
    if not all(0 < len(each) <= MOST_NAME for each in (message.instance_id, message.pool)):
        raise BadInput(f"an agent says its instance id and its pool, each in 1 to {MOST_NAME} characters")
    if not all(map(str.isprintable, _texts(message))):
        raise BadInput("an agent's instance id, version, pool, labels and sandboxes are printable characters")
    if not 0 < message.slots <= MOST_SLOTS:
        raise BadInput(f"an agent has 1 to {MOST_SLOTS} slots: set them with --slots")
    if len(message.labels) > MOST_LABELS:
        raise BadInput(f"an agent has at most {MOST_LABELS} labels")
    return Hello(
        name=message.name,
        instance=message.instance_id,
        version=message.version,
        pool=message.pool,
        labels=dict(message.labels),
        slots=message.slots,
        abilities=tuple(map(_ability, message.sandboxes)),
        held=tuple(Held(each.attempt_id, each.token) for each in message.held),
        leaving=message.draining,
        refusal=sentence_of(message.draining_sentence, MOST_SENTENCE),
        number=min(message.number, _MOST_NUMBER),
        slot_cpu=min(max(message.slot_share.cpu, 0.0), _MOST_CORES),
        slot_memory=min(max(message.slot_share.memory, 0), _MOST_NUMBER),
    )


def _ability(message: wire.SandboxAbility) -> Ability:
    why_not = sentence_of(message.why_not, MOST_SENTENCE)
    return Ability(message.kind, frozenset(message.networks), why_not, hard_limits=message.hard_limits)


def _texts(message: wire.Hello) -> Iterator[str]:
    yield from (message.instance_id, message.version, message.pool)
    for label, value in message.labels.items():
        yield from (label, value)
    for ability in message.sandboxes:
        yield from (ability.kind, *ability.networks)


def sentence_of(text: str, most: int) -> str:
    """A sentence that an agent says: bounded, and without what the database cannot hold."""
    return text[:most].replace("\0", "\ufffd")


def report_of(message: wire.Report) -> Report:
    """A report of the wire. Raises BadInput for one that says nothing, or has no proper id."""
    if not 0 < len(message.id) <= MOST_NAME or not message.id.isprintable():
        raise BadInput(f"a report has an id of 1 to {MOST_NAME} printable characters")
    match message.WhichOneof("what"):
        case "started":
            return StartedReport(message.id, message.attempt_id, message.token)
        case "ended":
            ended = message.ended
            word = state_word(ended.state)
            if word not in ATTEMPT_OUTCOMES:
                raise BadInput(f"`{word}` is no outcome of an attempt")
            outputs = _outputs(ended.outputs)
            kept = wire.Ended()
            kept.CopyFrom(ended)
            kept.ClearField("outputs")  # they are the job's, and kept with it
            return EndedReport(
                message.id,
                message.attempt_id,
                message.token,
                outcome=AttemptState(word),
                cause=cause_of(ended.cause),
                sentence=sentence_of(ended.sentence, 2_000),
                details=kept.SerializeToString(),
                log_records=dict(ended.log_records),
                exit_code=_exit_code(ended),
                log_patterns=frozenset(ended.log_patterns),
                outputs=outputs,
            )
        case _:
            raise BadInput("a report says that an attempt has started or ended")


def _exit_code(ended: wire.Ended) -> int | None:
    """Of the first step that failed, and that was not allowed to."""
    failed = (step for step in ended.steps if step.cause and not step.skipped and not step.allowed)
    step = next(failed, None)
    return step.exit_code if step is not None and step.HasField("exit_code") else None


def _outputs(data: bytes) -> str:
    """A job's outputs as text. Raises BadInput for what is no JSON object."""
    if not data:
        return ""
    try:
        found = json.loads(data)
    except ValueError as error:
        raise BadInput("a job's outputs are a JSON object") from error
    if not isinstance(found, dict):
        raise BadInput("a job's outputs are a JSON object")
    return json.dumps(found).replace("\\u0000", "\\ufffd")


def _try(number: int) -> dict[str, Any]:
    """The field has the name of a keyword."""
    return {"try": number}


def nonce_of(message: wire.PermitRequest) -> str:
    """The nonce of a supervisor. Raises BadInput for one that can be no random number."""
    if not 0 < len(message.nonce) <= MOST_NAME or not message.nonce.isprintable():
        raise BadInput(f"a nonce has 1 to {MOST_NAME} printable characters")
    return message.nonce


def welcome(opened: Opened, timing: Timing) -> wire.SessionResponse:
    """The first message to an agent."""
    return wire.SessionResponse(
        welcome=wire.Welcome(
            session_id=opened.session_id,
            heartbeat_interval_ms=int(timing.heartbeat * 1000),
            lease_ms=int(timing.lease * 1000),
            long_lease_ms=int(timing.long_lease * 1000),
            verdicts=[
                wire.Verdict(attempt_id=each.attempt_id, resume=each.resume, sentence=each.sentence)
                for each in opened.verdicts
            ],
            drain=opened.drained,
        )
    )


def response(message: Outgoing) -> wire.SessionResponse:
    """Whatever dispatch has to say to an agent, on the wire."""
    match message:
        case Assign():
            return wire.SessionResponse(assignments=_assignments(message))
        case Beaten():
            return wire.SessionResponse(heartbeat_answer=wire.HeartbeatAnswer(sequence=message.sequence))
        case Answered():
            answers = [
                wire.ReportAnswer(
                    id=each.report_id, attempt_id=each.attempt_id, abort=each.abort, sentence=each.sentence
                )
                for each in message.answers
            ]
            return wire.SessionResponse(report_answers=wire.ReportAnswers(answers=answers))
        case Permitted():
            permit = message.permit
            return wire.SessionResponse(
                permit_answer=wire.PermitAnswer(
                    attempt_id=message.attempt_id,
                    nonce=message.nonce,
                    granted=permit.granted,
                    fencing_token=permit.fencing_token,
                    sentence=permit.sentence,
                )
            )
        case CancelThese():
            cancels = [
                wire.Cancel(attempt_id=each.attempt_id, abort=message.abort, kill=each.kill, sentence=each.sentence)
                for each in message.orders
            ]
            return wire.SessionResponse(cancels=wire.Cancels(cancels=cancels))
        case DrainIt():
            return wire.SessionResponse(drain=wire.Drain(undo=message.undo))
        case SendAway():
            return wire.SessionResponse(
                go_away=wire.GoAway(sentence=message.sentence, retry_after_ms=round(message.retry_after_s * 1000))
            )


def _assignments(message: Assign) -> wire.Assignments:
    return wire.Assignments(
        assignments=[
            wire.Assignment(
                number=each.number,
                attempt_id=each.attempt_id,
                token=each.token,
                **_try(each.attempt_try),
                spec=each.spec,
                needs=each.needs,
            )
            for each in message.claimed
        ]
    )
