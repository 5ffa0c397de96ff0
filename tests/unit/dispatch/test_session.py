"""A session as a replica holds it: its credit, its numbers, what is sent to its agent and what is taken from it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from coordinator.api.agent_messages import hello_of, report_of
from coordinator.core.matching import Ability, Offer
from coordinator.dispatch.bells import LocalBells
from coordinator.dispatch.port import CancelOrder, Claimed, Wake
from coordinator.dispatch.session import (
    MOST_UNSENT,
    Assign,
    Beaten,
    CancelThese,
    Session,
    SessionOver,
)
from coordinator.errors import BadInput
from coordinator.settings import Settings
from headrace.v1 import agent_pb2 as pb
from headrace.v1 import common_pb2

OFFER = Offer("default", (), (Ability("bubblewrap", frozenset({"none"})),))


def session(credit: int = 4) -> Session:
    return Session("s", 1, "a", OFFER, slots=4, credit=credit, drained=False, leaving=False)


def claimed(number: int, attempt_id: int = 5, *, spec: bytes = b"", needs: bytes = b"") -> Claimed:
    return Claimed("s", number, attempt_id, b"t" * 16, 1, 1, 7, 1, spec, 0.0, needs)


def order(attempt_id: int = 5, *, kill: bool = False) -> CancelOrder:
    return CancelOrder(attempt_id, "s", kill, "enough")


async def test_a_cancel_that_overtook_its_assignment_is_sent_again_behind_it() -> None:
    """An agent ignores a cancel of what it does not know: the job would run to its end, canceled by nobody."""
    mine = session()
    mine.cancel([order()])
    mine.assign([claimed(1)], deadline=3.0)
    cancel, assign, again = await mine.next_messages()
    assert isinstance(cancel, CancelThese)
    assert isinstance(assign, Assign)
    assert again == CancelThese((order(),))


async def test_a_cancel_is_told_once_and_again_only_when_it_has_become_a_kill() -> None:
    """The loop reads all orders again and again."""
    mine = session()
    mine.assign([claimed(1)], deadline=3.0)
    for kill in (False, False, True, True):
        mine.cancel([order(kill=kill)])
    _, *told = await mine.next_messages()
    assert told == [CancelThese((order(),)), CancelThese((order(kill=True),))]


async def test_a_class_that_was_refused_is_left_to_others_for_a_while() -> None:
    """Else the same job goes to the same agent in a circle."""
    mine = session()
    mine.assign([claimed(1)], deadline=3.0)
    refused = mine.acknowledged(1, accepted=False, barred_until=10.0)
    assert refused == claimed(1)
    assert not mine.may_take(7, 9.9)
    assert mine.may_take(8, 9.9)
    assert mine.may_take(7, 10.0)


async def test_an_assignment_is_overdue_once_and_only_when_nobody_took_it() -> None:
    """Taken back twice, it would be taken from somebody else."""
    mine = session()
    mine.assign([claimed(1, 5), claimed(2, 6)], deadline=3.0)
    mine.acknowledged(1, accepted=True, barred_until=0.0)
    assert mine.overdue(2.9) == []
    assert mine.overdue(3.0) == [claimed(2, 6)]
    assert mine.overdue(9.0) == []
    assert (mine.credit, mine.next_number) == (2, 3)


async def test_an_agent_that_does_not_read_is_given_up() -> None:
    """Its messages would fill the memory of the coordinator."""
    mine = session()
    for _ in range(MOST_UNSENT + 1):
        mine.send(Beaten(1))
    with pytest.raises(SessionOver, match="does not read"):
        await mine.next_messages()
    assert not mine.wants_work


def test_an_agent_that_grants_more_than_it_has_is_refused() -> None:
    """Four billion free slots would be asked of the database at once, and every claim would fail."""
    mine = session(credit=3)
    mine.grant(1)
    with pytest.raises(BadInput, match="4 slots"):
        mine.grant(1)
    assert mine.credit == 4


@pytest.mark.parametrize(("highest", "attempts"), [((1 << 64) - 1, 0), (2, 0), (0, 1005)])
def test_a_heartbeat_that_cannot_be_meant_is_refused_alone(highest: int, attempts: int) -> None:
    """In the statement of all heartbeats it would end every session of the replica."""
    mine = session()
    mine.assign([claimed(1)], deadline=3.0)
    mine.check_beat(1, range(1004))
    with pytest.raises(BadInput):
        mine.check_beat(highest, range(attempts))


def test_a_bell_of_another_replica_is_not_passed_on() -> None:
    """Two replicas would ring each other for ever."""
    passed: list[Wake] = []
    bells = LocalBells(passed.append)
    with bells.listening("queue") as heard:
        bells.heard(Wake(queue=True))
        assert heard.is_set()
        assert passed == []
        bells.ring(Wake(queue=True))
        assert passed == [Wake(queue=True)]


@pytest.mark.parametrize("field", ["sentence", "id", "instance_id", "version", "label"])
def test_a_text_that_the_database_cannot_hold_does_not_reach_it(field: str) -> None:
    """PostgreSQL knows no NUL in a text: one report with it would fail the batch of everybody, again and again."""
    bad = "a\0b"
    if field in ("sentence", "id"):
        ended = pb.Ended(state=common_pb2.ATTEMPT_STATE_FAILED, sentence=bad if field == "sentence" else "")
        report = pb.Report(id=bad if field == "id" else "r", attempt_id=1, token=b"t" * 16, ended=ended)
        if field == "id":
            with pytest.raises(BadInput):
                report_of(report)
            return
        assert "\0" not in report_of(report).sentence  # type: ignore[union-attr]  # it has ended
        return
    hello = pb.Hello(name="a", instance_id="i", version="1", pool="default", slots=1)
    if field == "label":
        hello.labels["arch"] = bad
    else:
        setattr(hello, field, bad)
    with pytest.raises(BadInput):
        hello_of(hello)


def test_a_lease_that_ends_between_two_heartbeats_is_refused() -> None:
    """Every job would be lost, again and again, and nothing would say why."""
    with pytest.raises(ValidationError, match="HEADRACE_LEASE_S"):
        Settings(lease_s=10, heartbeat_s=5)
    assert Settings(lease_s=15, heartbeat_s=5).lease_s == 15


async def test_large_jobs_are_assigned_in_messages_that_the_wire_takes() -> None:
    """One too large breaks the stream, and the same jobs are in the next session's first message again."""
    mine = session()
    jobs = [claimed(n, n, spec=b"x" * size) for n, size in enumerate((3 << 20, 600_000, 600_000, 5), 1)]
    mine.assign([*jobs, claimed(5, 5, needs=b"x" * 600_000)], deadline=3)
    messages = await mine.next_messages()
    assert [[each.number for each in message.claimed] for message in messages if isinstance(message, Assign)] == [
        [1],
        [2],
        [3, 4],
        [5],
    ]
