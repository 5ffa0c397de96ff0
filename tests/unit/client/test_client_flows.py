"""The flows by themselves: no wire, no clock, a hand that plays the driver."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from headrace.client import flows
from headrace.client.flows import END
from headrace.client.frames import inflate
from headrace.client.pace import Pace, RetryPolicy
from headrace.client.types import LogBytes, LogEnd, LogGap
from headrace.errors import Busy, Conflict, Corrupt, Unreachable
from headrace.v1 import blob_pb2, common_pb2, log_pb2, run_pb2


class Clock:
    """Time that passes only when a flow waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def pace(clock: Clock | None = None, **policy: float) -> Pace:
    return Pace(RetryPolicy(**policy), clock or Clock(), random.Random(7))


CUT = Unreachable("here", "cut")


def play(flow: flows.Flow[Any], answers: dict[type, Any], clock: Clock | None = None) -> tuple[list[Any], Any]:
    """Drives a flow: `answers[Step]` is a function from step to reply, or raises."""
    given_out: list[Any] = []
    try:
        step = next(flow)
        while True:
            reply = None
            if isinstance(step, flows.Give):
                given_out.append(step.value)
            elif isinstance(step, flows.Wait):
                if clock:
                    clock.now += step.seconds
            else:
                try:
                    reply = answers[type(step)](step)
                except Exception as error:  # a driver throws in whatever went wrong
                    step = flow.throw(error)
                    continue
            step = flow.send(reply)
    except StopIteration as end:
        return given_out, end.value


class LogServer:
    """A log cut into frames; each connection serves some messages, then is cut, until the cuts are used up."""

    def __init__(self, frames: list[bytes], cuts: list[int]) -> None:
        self.records, offset = [], 0
        for number, data in enumerate(frames, 1):
            frame = log_pb2.Frame(raw_length=len(data), zstd=zstandard.compress(data), section=1)
            self.records.append(log_pb2.Record(sequence=number, offset=offset, frame=frame))
            offset += len(data)
        self.length, self.cuts, self.opened = offset, list(cuts), 0

    def open(self, step: flows.Open) -> None:
        self.opened += 1
        offset = step.request.offset
        records = [each for each in self.records if each.offset + each.frame.raw_length >= offset]
        self.stream = [log_pb2.TailResponse(record=each) for each in records]
        self.stream.append(log_pb2.TailResponse(end=log_pb2.TailEnd(offset=self.length, complete=True)))
        self.left = self.cuts.pop() if self.cuts else len(self.stream)

    def next(self, step: flows.Next) -> Any:
        if not self.left:
            raise CUT
        self.left -= 1
        return self.stream.pop(0) if self.stream else END


@given(
    frames=st.lists(st.binary(min_size=1, max_size=40), max_size=12),
    cuts=st.lists(st.integers(0, 6), max_size=8),
    data=st.data(),
)
def test_a_tail_gives_every_byte_once_however_often_it_is_cut(frames, cuts, data):
    """The promise of `headrace logs -f`: from any offset, over any number of reconnects, not a byte lost or doubled."""
    whole = b"".join(frames)
    offset = data.draw(st.integers(0, len(whole)))
    server = LogServer(frames, cuts)
    given_out, _ = play(
        flows.tail(pace(patience_at_first=1e9, patience=1e9), flows.TailOf(1, "unit", offset=offset)),
        {flows.Open: server.open, flows.Next: server.next},
    )
    pieces = [each for each in given_out if isinstance(each, LogBytes)]
    assert b"".join(each.data for each in pieces) == whole[offset:]
    assert [each.offset for each in pieces] == [
        offset + sum(len(p.data) for p in pieces[:n]) for n in range(len(pieces))
    ]
    assert given_out[-1] == LogEnd(0, len(whole), complete=True)
    assert not any(isinstance(each, LogGap) for each in given_out)


def test_a_tail_tells_our_lines_from_the_jobs():
    """A job can print what it likes, but not in our name."""
    server = LogServer([b"headrace: a lie\n", b"headrace: the truth\n"], [])
    server.records[1].frame.ours = True
    given_out, _ = play(flows.tail(pace(), flows.TailOf(1, "unit")), {flows.Open: server.open, flows.Next: server.next})
    assert [each.ours for each in given_out if isinstance(each, LogBytes)] == [False, True]


def test_a_tail_says_which_bytes_are_missing_for_good():
    """A log that was cut at its limit must not look whole."""
    server = LogServer([b"abc", b"defg", b"hi"], [])
    del server.records[1]
    given_out, _ = play(flows.tail(pace(), flows.TailOf(1, "unit")), {flows.Open: server.open, flows.Next: server.next})
    assert LogGap(0, offset=7, length=4) in given_out


def test_a_tail_keeps_to_the_attempt_that_answered_first():
    """A retry between two connections must not splice the logs of two attempts."""
    asked = []

    def opened(step: flows.Open) -> None:
        asked.append(getattr(step.request, "try"))

    replies = iter(
        [
            log_pb2.TailResponse(record=log_pb2.Record(sequence=1, opened=log_pb2.SectionOpened()), **{"try": 3}),
            CUT,
            log_pb2.TailResponse(end=log_pb2.TailEnd(complete=True), **{"try": 3}),
        ]
    )

    def following(step: flows.Next) -> Any:
        if (reply := next(replies)) is CUT:
            raise CUT
        return reply

    play(flows.tail(pace(), flows.TailOf(1, "unit")), {flows.Open: opened, flows.Next: following})
    assert asked == [0, 3]


def test_a_section_that_was_announced_is_not_announced_again_after_a_cut():
    """Sections have no bytes: an offset alone cannot tell whether they were seen."""
    opened = log_pb2.Record(sequence=1, opened=log_pb2.SectionOpened(section=1, kind="step", title="tests"))
    frame = log_pb2.Record(sequence=2, frame=log_pb2.Frame(raw_length=1, zstd=zstandard.compress(b"x"), section=1))
    closed = log_pb2.Record(sequence=3, offset=1, closed=log_pb2.SectionClosed(section=1))
    end = log_pb2.TailResponse(end=log_pb2.TailEnd(offset=1, complete=True))
    records = [log_pb2.TailResponse(record=each) for each in (opened, frame, closed)]
    replies = iter([*records[:1], CUT, *records, CUT, records[2], end])

    def following(step: flows.Next) -> Any:
        if (reply := next(replies)) is CUT:
            raise CUT
        return reply

    given_out, _ = play(
        flows.tail(pace(), flows.TailOf(1, "unit")), {flows.Open: lambda step: None, flows.Next: following}
    )
    assert [type(each).__name__ for each in given_out] == ["SectionOpened", "LogBytes", "SectionClosed", "LogEnd"]


def test_a_frame_over_the_limit_is_refused_even_when_it_declares_itself_rightly():
    """64 KiB is the contract: a reader may count on it."""
    with pytest.raises(Corrupt):
        inflate(frame_of(b"x" * (64 * 1024 + 1), 64 * 1024 + 1).record.frame)
    assert len(inflate(frame_of(b"x" * 64 * 1024, 64 * 1024).record.frame)) == 64 * 1024


def frame_of(data: bytes, declared: int) -> log_pb2.TailResponse:
    frame = log_pb2.Frame(raw_length=declared, zstd=zstandard.compress(data))
    return log_pb2.TailResponse(record=log_pb2.Record(sequence=1, frame=frame))


@pytest.mark.parametrize("declared", [3, 1000, 64 * 1024 + 1, 2**32 - 1])
def test_a_frame_that_is_not_as_long_as_it_declares_is_refused(declared):
    """A frame is inflated within its declared length alone: a few bytes must not become gigabytes."""
    bomb = frame_of(b"x" * 500_000, declared)
    with pytest.raises(Corrupt):
        play(
            flows.tail(pace(), flows.TailOf(1, "unit")),
            {flows.Open: lambda step: None, flows.Next: lambda step: bomb},
        )


def change(sequence: int, state: int) -> run_pb2.RunChange:
    return run_pb2.RunChange(sequence=sequence, run=run_pb2.Run(id=1, state=state))


@given(cuts=st.lists(st.integers(0, 5), max_size=6), changes=st.integers(1, 10))
def test_a_watch_gives_every_change_once_and_ends_with_the_run(cuts, changes):
    """Whatever is watched is a stream that survives its connection; nobody has to poll or to sort out doubles."""
    running, passed = common_pb2.RUN_STATE_RUNNING, common_pb2.RUN_STATE_PASSED
    history = [change(number, passed if number == changes else running) for number in range(1, changes + 1)]
    left_cuts, stream = list(cuts), []
    left = [0]

    def opened(step: flows.Open) -> None:
        stream[:] = [each for each in history if each.sequence > step.request.after]
        left[0] = left_cuts.pop() if left_cuts else 100

    def following(step: flows.Next) -> Any:
        if not left[0]:
            raise CUT
        left[0] -= 1
        return stream.pop(0) if stream else END

    given_out, _ = play(flows.watch(pace(patience_at_first=1e9), 1, 0), {flows.Open: opened, flows.Next: following})
    assert [each.sequence for each in given_out] == list(range(1, changes + 1))


def test_a_watch_that_goes_on_gives_all_that_changed_at_once():
    """Of changes with one number only the last bears it; those before bear the one that is safe to go on behind."""
    job = run_pb2.RunChange(sequence=6, job=run_pb2.Job(key="unit"))
    stream = [change(5, common_pb2.RUN_STATE_PASSED), job, END]
    given_out, _ = play(
        flows.watch(pace(), 1, 5), {flows.Open: lambda step: None, flows.Next: lambda step: stream.pop(0)}
    )
    assert [(each.run is not None, each.job is not None) for each in given_out] == [(True, False), (False, True)]


def test_a_watch_behind_the_last_change_of_an_ended_run_is_over_at_once():
    """Resuming with `after` where nothing follows must end, not wait for a change that never comes."""
    ended = run_pb2.Run(id=1, state=common_pb2.RUN_STATE_FAILED, sequence=9)
    given_out, _ = play(
        flows.watch(pace(), 1, 9),
        {flows.Open: lambda step: None, flows.Next: lambda step: END, flows.Call: lambda step: ended},
    )
    assert given_out == []


def test_a_call_is_tried_again_with_the_very_same_request_until_the_patience_is_over():
    """The request id makes a retried CreateRun one run; a dead coordinator is said after a bounded time."""
    clock, tries = Clock(), []

    def refuse(step: flows.Call) -> Any:
        tries.append(step.request)
        raise CUT

    request = run_pb2.CreateRunRequest(request_id="r")
    with pytest.raises(Unreachable):
        play(
            flows.call(pace(clock, patience_at_first=5), flows.methods.CREATE, request),
            {flows.Call: refuse},
            clock,
        )
    assert 3 < clock.now <= 5
    assert len(tries) > 4
    assert all(each is request for each in tries)


def test_a_busy_coordinator_is_given_the_time_it_asked_for():
    """RetryInfo is a plea: coming back sooner makes an overload worse."""
    clock, answers = Clock(), iter([Busy("later", after=30), Busy("later", after=30), None])

    def answer(step: flows.Call) -> Any:
        if (error := next(answers)) is not None:
            raise error
        return run_pb2.Run()

    play(
        flows.call(pace(clock, patience_at_first=1), flows.methods.GET, run_pb2.GetRunRequest()),
        {flows.Call: answer},
        clock,
    )
    assert clock.now >= 60


def test_what_trying_again_cannot_mend_is_raised_at_once():
    """A conflict is an answer, not a fault of the line."""
    tries = []

    def refuse(step: flows.Call) -> Any:
        tries.append(step)
        raise Conflict("the run has ended")

    with pytest.raises(Conflict):
        play(flows.call(pace(), flows.methods.CANCEL, run_pb2.CancelRunRequest()), {flows.Call: refuse})
    assert len(tries) == 1


def artifact_of(*paths: str) -> blob_pb2.DownloadArtifactResponse:
    response = blob_pb2.DownloadArtifactResponse()
    for path in paths:
        response.artifact.files.add(path=path, sha256="aa", size=2)
        response.transfers.add(sha256="aa", size=2, method="GET", url="http://127.0.0.1/aa")
    return response


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "", "a//b", "./a", "a\0b", "a/.."])
def test_an_artifact_cannot_name_a_file_outside_the_folder(name):
    """The names come from a job, and a job is hostile: nothing may be written beside the folder, or at all."""
    fetched = []
    with pytest.raises(Corrupt):
        play(
            flows.download(pace(), 1, "dist", Path("out")),
            {flows.Call: lambda step: artifact_of("good", name), flows.Fetch: fetched.append},
        )
    assert not fetched


def test_a_download_asks_for_new_signatures_when_the_old_ones_have_expired():
    """Signed requests live ten minutes; a download of many files may live longer."""
    asked, refusals = [], [CUT]

    def fetch(step: flows.Fetch) -> None:
        if refusals:
            raise refusals.pop()

    def sign(step: flows.Call) -> Any:
        asked.append(step)
        return artifact_of("a", "b")

    _, paths = play(flows.download(pace(), 1, "dist", Path("out")), {flows.Call: sign, flows.Fetch: fetch})
    assert len(asked) == 2
    assert paths == [Path("out/a"), Path("out/b")]


def test_a_stream_that_was_silent_for_hours_is_tried_again_as_long_as_one_that_was_not():
    """Nothing is sent while nothing happens: a coordinator that restarts then must not end every watch at once."""
    clock = Clock()
    server = LogServer([b"a", b"b"], cuts=[2, 0, 1])

    def next_(step: flows.Next) -> Any:
        if not server.left and server.opened == 1:
            clock.now += 10_000  # a quiet job
        return server.next(step)

    what = {flows.Open: server.open, flows.Next: next_}
    given_out, _ = play(flows.tail(pace(clock, patience=20.0), flows.TailOf(1, "unit")), what, clock)
    assert given_out[-1] == LogEnd(0, 2, complete=True)
