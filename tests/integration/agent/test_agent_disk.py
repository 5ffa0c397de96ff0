"""What an agent does when its disk is full, goes bad, or no longer holds what was written there."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import zstandard

from agent.supervisor.segments import segments
from headrace.v1 import common_pb2 as pb
from tests.harness.agent_records import places, until_kept
from tests.integration.agent.conftest import Agent, job
from tests.integration.agent.disks import fill, small, thin
from tests.integration.agent.other_side import OtherSide, other_side

NOISE = "head -c 8000000 /dev/urandom | base64"


async def whole(side: OtherSide, attempt: int) -> str:
    """The log of an attempt that has ended, when it is as long as its outcome said. Its text, without filling."""
    await side.until(lambda: attempt in side.ended)
    ended = side.ended[attempt]
    await side.until(lambda: len(side.logs[attempt].records) == ended.log_records["main"])
    offset = 0
    for record in side.logs[attempt].records:
        assert record.offset == offset, record.sequence
        offset += record.frame.raw_length
    assert offset == ended.log_bytes["main"]
    return side.logs[attempt].text


@pytest.mark.root
async def test_a_sync_that_fails_ends_the_job_with_the_reason_and_the_agent_stays_away_from_work(
    agent: Agent, side: OtherSide, short_path: Path
) -> None:
    """What the disk took and did not keep is never handed on as if it were there; the outcome is, from memory."""
    with thin(agent.data, short_path / "below"):
        await agent.start()
        first = side.give(job(None, "echo hello"))
        await side.until(lambda: first in side.ended)
        assert side.ended[first].state == pb.ATTEMPT_STATE_PASSED
        side.take_logs = False  # or its room would be free again before it is full
        fill(short_path / "below", 2 << 20)
        attempt = side.give(job(None, f"echo begun; {NOISE}; echo never"))
        await side.until(lambda: attempt in side.ended)
        side.take_logs = True
        text = await whole(side, attempt)
        ended = side.ended[attempt]
        assert (ended.state, ended.cause) == (pb.ATTEMPT_STATE_ERRORED, pb.CAUSE_ERRORED)
        assert "on the agent's disk could not be synced: No space left on device" in ended.sentence
        assert "bytes of this log are missing here: " in text.splitlines()[-1]
        assert "never" not in text
        await side.until(lambda: side.draining)
        assert side.refusal.endswith("it takes no job until its disk was looked at and the agent is started again")
        side.draining = False  # a coordinator that has not heard of it
        side.credit = 1
        third = side.give(job(None, "true"))
        await side.until(lambda: third in side.accepted)
        assert (side.accepted[third], side.refusals[third]) == (False, side.refusal)
        await agent.left()


@pytest.mark.root
async def test_a_job_that_comes_to_a_full_disk_is_refused_in_one_sentence(
    agent: Agent, side: OtherSide, short_path: Path
) -> None:
    """It goes to another agent at once, where it would have ended badly here."""
    with small(agent.data, "80m"):
        await agent.start()
        await side.until(lambda: side.credit == 2)
        ballast = fill(agent.data, 10 << 20)
        refused = side.give(job(None, "true"))
        await side.until(lambda: refused in side.accepted)
        assert not side.accepted[refused]
        place = f"MiB are free in {agent.data}, and a job needs 32 MiB: make room there"
        assert side.refusals[refused].startswith("the agent's disk is full: ")
        assert side.refusals[refused].endswith(place)
        ballast.unlink()
        taken = side.give(job(None, "true"))
        await side.until(lambda: taken in side.ended)
        assert side.ended[taken].state == pb.ATTEMPT_STATE_PASSED
        await agent.left()


@pytest.mark.root
async def test_a_job_on_a_disk_that_fills_up_waits_and_its_outcome_has_room(
    agent: Agent, side: OtherSide, short_path: Path
) -> None:
    """Back-pressure, not a lost log; the record of the outcome was given its room when the job was taken."""
    with small(agent.data, "80m"):
        await agent.start()
        side.take_logs = False
        attempt = side.give(job(None, f"echo begun; {NOISE}; echo done"))
        await side.until(lambda: attempt in side.started)
        ballast = fill(agent.data, 2 << 20)
        await until_full(agent.data)
        assert attempt not in side.ended
        side.take_logs = True
        text = await whole(side, attempt)
        assert side.ended[attempt].state == pb.ATTEMPT_STATE_PASSED
        assert text.endswith("done\n")
        assert text.count("\n") > 100_000
        ballast.unlink()
        await agent.left()


async def until_full(disk: Path) -> None:
    """Waits until nothing more fits on it."""
    async with asyncio.timeout(30):
        while (facts := os.statvfs(disk)).f_bavail * facts.f_frsize > 200_000:  # noqa: ASYNC110 - a disk has no event
            await asyncio.sleep(0.02)


async def test_rot_in_a_log_is_told_where_it_is_counted_and_changes_no_outcome(agent: Agent, short_path: Path) -> None:
    """The rest of the log is worth as much as before."""
    async with other_side() as first:
        agent.side = first
        first.take_logs = False
        await agent.start()
        script = "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); sleep 0.11; done"
        attempt = first.give(job(None, script))
        await first.until(lambda: attempt in first.ended)
        address, tokens, ended = first.address, first.tokens, first.ended
        agent.kill()
        await agent.ended()
    file = segments(agent.data / "logs" / str(attempt))[0].path
    data = bytearray(file.read_bytes())
    at = data.index(zstandard.compress(b"line 20\n", level=1)[-12:])
    data[at + 3] ^= 4
    file.write_bytes(bytes(data))
    async with other_side(address) as second:
        second.tokens, second.ended = tokens, ended
        agent.side = second
        await agent.start()
        text = await whole(second, attempt)
        assert "*** damaged ***"[-7:] in text
        wanted = [f"line {i}" for i in range(40) if i != 20]
        assert [line for line in text.replace("\0", "").splitlines() if line.startswith("line ")] == wanted
        assert ended[attempt].state == pb.ATTEMPT_STATE_PASSED
        agent.terminate()
        assert await agent.ended() == 0
    assert "log damaged on disk" in agent.log


async def test_rot_in_the_record_of_an_attempt_ends_it_errored_with_the_reason(agent: Agent, side: OtherSide) -> None:
    """Nobody knows how far it came: it is not gone on with, and not forgotten either."""
    await agent.start()
    attempt = side.give(job(None, "echo begun; sleep 60"))
    await side.until(lambda: attempt in side.logs and "begun" in side.logs[attempt].text)
    await until_kept(agent.data / "attempts", attempt, lambda record: record["phase"] == "steps")
    agent.kill()
    await agent.ended()
    newest = max(places(agent.data / "attempts", attempt), key=lambda file: int(file.read_bytes().split()[2] or 0))
    data = bytearray(newest.read_bytes())
    data[data.index(b'"phase"') + 3] ^= 1
    newest.write_bytes(bytes(data))
    await agent.start()
    await whole(side, attempt)
    ended = side.ended[attempt]
    assert (ended.state, ended.cause) == (pb.ATTEMPT_STATE_ERRORED, pb.CAUSE_ERRORED)
    assert ended.sentence == (
        f"the agent's record of this attempt was damaged on its disk ({newest.name}: its checksum does not fit)"
    )
    assert "record cannot be read" in agent.log
