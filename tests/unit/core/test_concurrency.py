"""Groups: who enters, who waits, who has to go."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from coordinator.core.concurrency import Member, admit
from headrace.pipeline.plan import WhenFull

QUEUE, OLDER, NEWER = WhenFull.QUEUE, WhenFull.CANCEL_OLDER, WhenFull.CANCEL_NEWER


def member(number: int, when: WhenFull = QUEUE, *, limit: int = 1, **facts: bool) -> Member:
    return Member(number, f"run {number}", limit, when, **facts)


def test_who_comes_first_enters_first_and_the_others_wait() -> None:
    """First in, first out, of any depth."""
    assert admit([member(1), member(2), member(3)]).enter == (1,)
    assert admit([member(1, entered=True), member(2), member(3)]) == admit([])
    assert admit([member(2, limit=2), member(3, limit=2), member(4, limit=2)]).enter == (2, 3)


def test_a_newer_one_takes_the_place_of_an_older_one() -> None:
    """`cancel-older`: only the newest state of a branch is of interest."""
    found = admit([member(1, OLDER, entered=True), member(2, OLDER), member(3, OLDER)])
    assert found.enter == ()
    assert {key for key, _ in found.cancel} == {1, 2}
    assert "run 3" in dict(found.cancel)[2]


def test_a_run_in_a_deployment_is_let_finish() -> None:
    """Half a deployment is worse than a late one."""
    found = admit([member(1, OLDER, entered=True, deploys=True), member(2, OLDER)])
    assert found == admit([])


def test_a_newer_one_is_turned_away_where_the_group_says_so() -> None:
    """`cancel-newer`: what runs is not disturbed, and nothing queues up behind it."""
    found = admit([member(1, NEWER, entered=True), member(2, NEWER)])
    assert [key for key, _ in found.cancel] == [2]
    assert admit([member(2, NEWER)]).enter == (2,)


def test_one_that_was_told_to_end_holds_its_place_until_it_is_gone() -> None:
    """Two at a time is what the group is there to prevent."""
    assert admit([member(1, OLDER, entered=True, leaving=True), member(2, OLDER)]) == admit([])


members = st.lists(
    st.builds(
        Member,
        id=st.just(0),
        name=st.just("x"),
        limit=st.just(2),
        when_full=st.sampled_from(WhenFull),
        entered=st.booleans(),
        deploys=st.booleans(),
        leaving=st.booleans(),
    ),
    max_size=8,
)


@given(members)
def test_a_group_is_never_fuller_than_its_limit_and_never_stands_still(drawn: list[Member]) -> None:
    """Whoever may enter does; whoever enters was not canceled; no deployment is."""
    known = [replace(each, id=number) for number, each in enumerate(drawn)]
    inside = sum(each.entered for each in known)
    found = admit(known)
    gone = {key for key, _ in found.cancel}
    assert inside + len(found.enter) <= max(2, inside)
    assert not gone & set(found.enter)
    assert not any(each.deploys and each.entered for each in known if each.id in gone)
    assert not any(each.leaving for each in known if each.id in gone)
    waiting = [
        each for each in known if not (each.entered or each.leaving or each.id in gone or each.id in found.enter)
    ]
    assert not waiting or inside + len(found.enter) >= 2 or any(each.leaving for each in known)
