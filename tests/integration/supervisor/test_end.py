"""How things end: timeouts, cancels, deadlines, deaths of agent, supervisor and sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from agent.clock import SystemClock
from agent.orphan import close_orphaned_log
from agent.problems import Cause
from agent.supervisor.client import SupervisorClient, SupervisorGone
from agent.supervisor.reading import SpoolReader
from agent.supervisor.records import Kind
from agent.supervisor.results import SupervisorSettings
from tests.integration.supervisor.conftest import Held, Starter, bubblewrap, plain, when_dead


def boot() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


async def test_a_timeout_is_term_and_the_next_step_runs(held: Held) -> None:
    """Cleaning steps still run."""
    result = await held.run(
        "trap 'echo heeded; exit 0' TERM; while :; do sleep 0.05; done", timeout_ms=1000, grace_ms=20_000
    )
    assert result.cause is Cause.STEP_TIMED_OUT
    assert result.ended_ms - result.began_ms < 5000
    assert b"heeded\n" in held.text(1)
    assert (await held.run("echo on")).cause is None


async def test_a_step_that_ignores_term_is_killed_after_its_grace(held: Held) -> None:
    """With its background processes."""
    result = await held.run("trap '' TERM; while :; do sleep 0.05; done", timeout_ms=1000, grace_ms=500)
    assert (result.cause, result.signal, result.exit_code) == (Cause.STEP_TIMED_OUT, signal.SIGKILL, None)
    assert 1500 <= result.ended_ms - result.began_ms < 5000
    assert (await held.run("true")).cause is None


async def test_a_cancel_ends_the_step_and_not_the_sandbox_a_second_one_all(held: Held) -> None:
    """First Ctrl-C, second Ctrl-C."""
    running = asyncio.create_task(held.run("echo up; sleep 100"))
    await held.until(b"up")
    await held.client.cancel(5000)
    assert ((await running).cause, (await held.run("echo cleaned")).cause) == (Cause.CANCELED, None)
    running = asyncio.create_task(held.run("trap '' TERM; echo again; while :; do sleep 0.05; done"))
    await held.until(b"again")
    await held.client.cancel(60_000)
    result = await running
    assert (result.cause, result.exit_code) == (Cause.CANCELED, None)
    assert (await held.client.end()).cause is Cause.CANCELED


async def test_the_deadline_ends_the_sandbox_by_itself(start: Starter) -> None:
    """Also when no agent is there to say so."""
    held = await start(SupervisorSettings(deadline_boot_ms=boot() + 1000))
    await held.client.launch(bubblewrap(held.folder))
    began = time.monotonic()
    result = await held.run("sleep 100")
    assert result.cause is Cause.JOB_TIMED_OUT
    assert time.monotonic() - began < 4


async def test_at_most_once_ends_when_the_lease_can_no_longer_be_counted_on(start: Starter) -> None:
    """And an answered heartbeat puts the end off."""
    lease, now = 16_000, boot()
    held = await start(SupervisorSettings(at_most_once=True, lease_ms=lease, grace_ms=0, heartbeat_sent_boot_ms=now))
    await held.client.launch(bubblewrap(held.folder))
    running = asyncio.create_task(held.run("sleep 100"))
    await held.client.heartbeat_answered(now + 500)
    result = await running
    assert result.cause is Cause.SANDBOX_KILLED
    assert now + 1500 <= boot() < now + 6000


async def test_a_deployment_begins_no_step_once_its_lease_cannot_be_counted_on(start: Starter) -> None:
    """A machine that stood still goes on with what its agent asked before: by now another one may deploy.

    The step is there when the supervisor wakes, and so is the end of its lease, which it has not looked at yet.
    """
    held = await start(SupervisorSettings(at_most_once=True, lease_ms=600_000, heartbeat_sent_boot_ms=boot()))
    await held.client.launch(bubblewrap(held.folder))
    os.kill(held.client.pid, signal.SIGSTOP)
    over = asyncio.create_task(held.client.extend(1))
    deploying = asyncio.create_task(held.run("echo deployed"))
    await asyncio.sleep(0)  # both are in the supervisor's socket
    os.kill(held.client.pid, signal.SIGCONT)
    await over
    assert (await deploying).cause is Cause.SANDBOX_KILLED
    assert (await held.client.state()).begun == ()


async def test_the_end_of_a_sandbox_leaves_no_process_and_one_outcome(held: Held) -> None:
    """Also none that has left its session; the outcome is the last record, and says how long the log is."""
    await held.run("setsid sleep 987 & nohup sleep 987 >/dev/null 2>&1 & echo text; true")
    pid = (await held.client.state()).pid
    ended = await held.client.end()
    assert ended == await held.client.end()
    assert (ended.cause, ended.offset) == (None, len(held.text()))
    assert (held.records()[-1].kind, held.records()[-1].sequence) == (Kind.OUTCOME, ended.records)
    assert (pid in living(b""), living(b"sleep\x00987\x00")) == (False, set())


def living(command: bytes) -> set[int]:
    """Processes with this command line; all when it is empty."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if file.read_bytes().startswith(command):
                found.add(int(file.parent.name))
    return found


async def test_a_supervisor_that_leaves_takes_its_names_along_and_leaves_the_spool(held: Held) -> None:
    """The agent removes the folder once the coordinator has the log."""
    await held.run("echo kept")
    await held.client.end()
    gone = held.gone()
    await held.client.leave()
    await gone
    assert sorted(path.name for path in held.folder.iterdir()) == ["priv"]
    assert b"kept\n" in held.text()
    assert await SupervisorClient.find(held.folder) is None


async def test_an_agent_that_is_gone_finds_its_step_again(held: Held) -> None:
    """Killed, frozen, upgraded: no job notices."""
    await held.client.note("token", "abc")
    nonce = await held.client.permit_nonce()
    step = held.step(1, "echo begun; sleep 0.3; echo ended; exit 6")
    running = asyncio.create_task(held.client.step(step))
    await held.until(b"begun")
    await held.client.close()
    with pytest.raises(SupervisorGone):
        await running
    again = await SupervisorClient.find(held.folder)
    assert again is not None
    state = await again.state()
    assert (state.phase, state.running, state.notes) == ("launched", 1, {"token": "abc"})
    assert await again.permit_nonce() == nonce
    assert (await again.step(step)).exit_code == 6
    assert held.text() == b"begun\nended\n"
    await again.close()


async def test_a_frozen_supervisor_blocks_the_job_and_loses_nothing(held: Held) -> None:
    """The job waits at a full pipe."""
    running = asyncio.create_task(held.run("seq 1 300000"))
    await held.until(b"\n100\n")
    os.kill(held.client.pid, signal.SIGSTOP)
    await asyncio.sleep(0.2)
    os.kill(held.client.pid, signal.SIGCONT)
    await running
    assert held.text() == b"".join(b"%d\n" % n for n in range(1, 300_001))


async def test_a_sandbox_dies_with_its_supervisor(held: Held) -> None:
    """An unwatched job has no deadline: bubblewrap dies with its parent, a plain child by the guard."""
    running = asyncio.create_task(held.run("echo up; (sleep 100; true) & sleep 100"))
    await held.until(b"up")
    dead = when_dead((await held.client.state()).pid)
    os.kill(held.client.pid, signal.SIGKILL)
    async with asyncio.timeout(2):
        await dead
    with pytest.raises(SupervisorGone):
        await running
    assert await SupervisorClient.find(held.folder) is None
    close_orphaned_log(held.folder / "priv", "its supervisor died", SystemClock())
    assert held.records()[-1].facts()["cause"] == Cause.ERRORED
    assert held.text().startswith(b"up\n")
    assert b"may be missing" in held.text()


async def test_a_sandbox_that_is_killed_from_outside_is_named_as_that(held: Held) -> None:
    """Neither the command's fault nor the machinery's."""
    running = asyncio.create_task(held.run("echo up; sleep 100"))
    await held.until(b"up")
    os.kill((await held.client.state()).pid, signal.SIGKILL)
    assert ((await running).cause, (await running).exit_code) == (Cause.SANDBOX_KILLED, None)
    assert (await held.run("true")).cause is Cause.SANDBOX_KILLED


async def test_a_full_spool_blocks_the_job_until_records_are_acknowledged(start: Starter) -> None:
    """Back-pressure, and not a byte lost."""
    held = await start(SupervisorSettings(spool_limit=200_000))
    await held.client.launch(bubblewrap(held.folder))
    size = 3_000_000
    running = asyncio.create_task(held.run(f"head -c {size} /dev/urandom | base64 -w0 | head -c {size}"))
    reader, wanted, got, most = SpoolReader(held.folder / "priv"), 1, 0, 0
    async for _ in held.client.spooled():
        most = max(most, sum(f.stat().st_size for f in (held.folder / "priv").glob("spool.*")))
        while records := reader.read(wanted):
            wanted = records[-1].sequence + 1
            got += sum(len(zstandard.decompress(r.payload)) for r in records if r.kind is Kind.FRAME)
            await held.client.acknowledge(wanted - 1)
        if got == size:
            break
    assert (await running).cause is None
    assert most <= 200_000


@pytest.mark.root
async def test_want_of_memory_is_told_from_a_plain_137(start: Starter) -> None:
    """By the cgroup's own count, at its own limit; `exit 137` is a failed step."""
    memory = Path("/sys/fs/cgroup/memory")
    if not (memory / "memory.limit_in_bytes").exists():
        memory = Path("/sys/fs/cgroup")
    group = memory / f"headrace-test-{os.getpid()}"
    group.mkdir()
    try:
        limit = "memory.limit_in_bytes" if (group / "memory.limit_in_bytes").exists() else "memory.max"
        (group / limit).write_text(str(64 << 20))
        held = await start()
        await held.client.launch(bubblewrap(held.folder, cgroups=(group,)), cgroups=(group,))
        assert (await held.run("exit 137")).cause is Cause.STEP_FAILED
        assert (await held.run("kill -9 $$")).cause is Cause.STEP_FAILED
        result = await held.run("x = bytearray(200 << 20)", shell="python")
        assert (result.cause, result.signal) == (Cause.OOM, signal.SIGKILL)
        assert "memory limit of the job" in result.sentence
        await held.client.end()
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:
                await asyncio.sleep(0.02)


async def test_a_plain_sandbox_needs_no_guard_to_end_its_strays(start: Starter) -> None:
    """Processes that left their session come to the supervisor when their parent ends."""
    held = await start(SupervisorSettings(guard=False))
    await held.client.launch(plain(held.folder))
    await held.run("(setsid sh -c 'echo $$; exec sleep 100' &) ; sleep 0.2")
    stray = when_dead(int(held.text()))
    await held.client.end()
    async with asyncio.timeout(2):
        await stray


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.root
async def test_a_full_disk_blocks_the_job_too_and_tears_no_record(start: Starter, disk: Path) -> None:
    """The agent frees room, and the log is whole."""
    (disk / "ballast").write_bytes(bytes(100_000))
    held = await start(SupervisorSettings(spool=disk))
    await held.client.launch(bubblewrap(held.folder))
    running = asyncio.create_task(held.run("head -c 1000000 /dev/urandom"))
    while os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > 70_000:  # noqa: ASYNC110 - a disk has no event
        await asyncio.sleep(0.01)
    reader, wanted, got = SpoolReader(disk), 1, 0
    while got < 1_000_000:
        while records := reader.read(wanted):
            wanted = records[-1].sequence + 1
            got += sum(len(zstandard.decompress(r.payload)) for r in records if r.kind is Kind.FRAME)
        await held.client.acknowledge(wanted - 1)
    assert (await running).cause is None
    await held.client.end()


async def test_no_other_user_of_the_machine_gets_into_an_attempts_folder(folder: Path) -> None:
    """Steps' scripts and environments, with their secrets, lie in it, and FIFOs that anybody may write to."""
    folder.parent.chmod(0o711)
    client = await SupervisorClient.start(folder, 1, settings=SupervisorSettings())
    try:
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        await client.end()
        await client.leave()
