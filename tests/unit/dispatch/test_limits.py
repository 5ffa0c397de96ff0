"""What one caller may ask of a replica."""

from __future__ import annotations

import pytest

from coordinator.api.limits import Limits
from coordinator.core.bucket import Rate
from coordinator.errors import TooMuch
from coordinator.listening import few_descriptors
from coordinator.store.runs import Unfinished


class Clock:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def limits(clock: Clock, told: list[str]) -> Limits:
    return Limits(
        caller=Rate(10, 6),
        subject=Rate(1, 3),
        streams=2,
        unfinished=Unfinished(runs=2, jobs=9),
        clock=clock,
        turned_away=told.append,
    )


def changes(where: Limits, subject: str, count: int) -> int:
    """How many of so many changes went through."""
    through = 0
    for _ in range(count):
        try:
            where.change("client", subject, "this project")
        except TooMuch:
            continue
        through += 1
    return through


def test_a_project_that_is_held_takes_nothing_from_the_others() -> None:
    """Its thousand refused calls leave what the token has for those who ask for little."""
    clock, told = Clock(), list[str]()
    where = limits(clock, told)
    assert changes(where, "loop", 1_000) == 3
    assert changes(where, "other", 3) == 3
    assert len(told) == 997
    clock.now = 1.0
    assert changes(where, "loop", 1_000) == 1


def test_a_token_has_a_rate_of_its_own_over_all_projects() -> None:
    """Whoever invents a project for each run is held all the same, and told until when."""
    clock = Clock()
    where = limits(clock, [])
    assert sum(changes(where, f"p{number}", 1) for number in range(100)) == 6
    with pytest.raises(TooMuch, match="under this token") as held:
        where.change("client", "new", "this project")
    assert held.value.retry_after_s == pytest.approx(0.1)
    clock.now = 0.1 + 1e-9
    where.change("client", "new", "this project")


def test_a_stream_that_ends_makes_room() -> None:
    """However it ends."""
    told = list[str]()
    where = limits(Clock(), told)
    with where.stream("client"):
        with pytest.raises(ValueError, match="it broke"), where.stream("client"):
            raise ValueError("it broke")
        with where.stream("client"):
            with pytest.raises(TooMuch, match="2 logs and runs"), where.stream("client"):
                pass
            with where.stream("another"):
                pass
    assert told == ["stream"]


@pytest.mark.parametrize(
    ("found", "words"), [((1, 8), ""), ((2, 2), "2 runs"), ((5, 5), "2 runs"), ((1, 9), "9 jobs"), ((1, 99), "9 jobs")]
)
def test_a_project_with_its_bound_under_way_gets_no_run_more(found: tuple[int, int], words: str) -> None:
    """The rate bounds how fast runs come, this how many there are; the last one in may bring more jobs."""
    told = list[str]()
    where = limits(Clock(), told)
    if not words:
        where.room(Unfinished(*found))
        return
    with pytest.raises(TooMuch, match=f"^{words} of this project have not ended") as refused:
        where.room(Unfinished(*found))
    assert refused.value.retry_after_s == 10
    assert told == ["room"]


@pytest.mark.parametrize(("limit", "words"), [(1 << 20, ""), (-1, ""), (1_024, "about 341 agents"), (8_191, "8,191")])
def test_an_operator_is_told_when_few_files_may_be_open(limit: int, words: str) -> None:
    """Past the limit nobody can connect, and nothing says why."""
    assert words in few_descriptors(limit)
    assert bool(few_descriptors(limit)) is bool(words)
