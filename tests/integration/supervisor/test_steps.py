"""Steps in a real sandbox: their results, their output, and what hostile ones cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import platform
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.problems import Cause, JobProblem
from agent.sandbox.protocol import Spawn
from tests.integration.supervisor.conftest import BWRAP, ENV, Held, Starter, bubblewrap, plain

SHELLS = [shell for shell in ("dash", "bash", "busybox ash") if shutil.which(shell.split()[0])]


@contextlib.contextmanager
def ignored(signum: int) -> Iterator[None]:
    """Ignores a signal that the C library keeps for itself: by the system call."""
    libc, number = ctypes.CDLL(None), {"x86_64": 13, "aarch64": 134}[platform.machine()]
    before = ctypes.create_string_buffer(32)
    ignore = ctypes.create_string_buffer((1).to_bytes(8, "little"), 32)
    assert libc.syscall(number, signum, ignore, before, 8) == 0
    try:
        yield
    finally:
        libc.syscall(number, signum, before, None, 8)


def cpu_seconds(pid: int) -> float:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return sum(map(int, stat.rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")


async def test_a_step_has_its_exit_code_output_and_environment(held: Held) -> None:
    """The plain case."""
    result = await held.run('echo "hello $NAME"; exit 3', env={"NAME": "it's me"})
    assert (result.exit_code, result.signal, result.cause) == (3, None, Cause.STEP_FAILED)
    assert held.text() == b"hello it's me\n"
    assert (await held.run("true")).cause is None


async def test_a_missing_shell_and_a_missing_folder_are_named(held: Held) -> None:
    """Told apart from a step's own 125 and 127, with the mend."""
    assert (await held.run("exit 127")).cause is Cause.STEP_FAILED
    missing = await held.run("true", shell="bash", env={"PATH": "/nowhere"})
    assert (missing.cause, "has no bash" in missing.sentence) == (Cause.SHELL_MISSING, True)
    step = held.step(9, "true")
    gone = await held.client.step(type(step)(**{**vars(step), "cwd": "/no/such"}))
    assert (gone.cause, "/no/such does not exist" in gone.sentence) == (Cause.WORKDIR_MISSING, True)
    assert b"/no/such does not exist" in held.text(9)


async def test_all_output_of_a_step_is_there_when_it_has_ended(held: Held) -> None:
    """3 MB, exactly: the end of a step is never taken before its bytes."""
    await held.run("head -c 3000000 /dev/zero | tr '\\0' x; exit 0")
    assert held.text(1) == b"x" * 3_000_000


async def test_a_step_ends_while_a_background_process_goes_on_writing(held: Held) -> None:
    """Its end is a report, never an end of file; what comes later belongs to whichever step runs then."""
    began = time.monotonic()
    await held.run("(while :; do echo noise; done) & sleep 0.1; echo mine")
    await held.run("true")
    assert time.monotonic() - began < 3
    assert b"mine\n" in held.text(1)


async def test_a_late_line_of_a_background_process_lands_in_the_next_step(held: Held) -> None:
    """Nothing that a job says is lost."""
    await held.run("(sleep 0.3; echo late) & true")
    await held.run("sleep 0.6")
    assert held.text(1) == b""
    assert held.text(2) == b"late\n"


async def test_a_step_that_closes_its_output_is_not_at_its_end(held: Held) -> None:
    """A daemonising step closes stdout long before it ends; the next one has its output all the same."""
    result = await held.run("exec >&- 2>&-; sleep 0.2; exit 5")
    assert result.exit_code == 5
    await held.run("echo here")
    assert held.text(2) == b"here\n"


async def test_a_step_cannot_spoil_the_next_ones_output(held: Held) -> None:
    """O_NONBLOCK and a shrunk pipe are undone: the next step neither fails nor crawls."""
    spoil = "import fcntl,os; fcntl.fcntl(1,fcntl.F_SETFL,os.O_NONBLOCK|os.O_WRONLY); fcntl.fcntl(1,1031,4096)"
    assert (await held.run(spoil, shell="python")).cause is None
    tell = "import fcntl,os; print(fcntl.fcntl(1,fcntl.F_GETFL)&os.O_NONBLOCK, fcntl.fcntl(1,1032))"
    await held.run(tell, shell="python")
    assert held.text(2) == b"0 1048576\n"


@pytest.mark.parametrize("shell", SHELLS)
async def test_kill_all_from_a_step_does_not_end_the_sandbox(start: Starter, shell: str) -> None:
    """`kill -9 -1` in a test suite is an accident, and the cleaning steps still run."""
    held = await start()
    await held.client.launch(bubblewrap(held.folder, shell))
    result = await held.run("kill -9 -1; sleep 5")
    assert result.exit_code in {1, 137}
    assert (await held.run("echo on")).cause is None


@pytest.mark.parametrize("shell", SHELLS)
async def test_no_signal_from_inside_ends_pid_1_and_steps_ignore_none(start: Starter, shell: str) -> None:
    """The control shell ignores INT, and gives it back to its steps, whatever the agent was started with."""
    with ignored(32):  # as the C library's posix_spawn leaves it
        held = await start()
    await held.client.launch(bubblewrap(held.folder, shell))
    await held.run("i=1; while [ $i -le 64 ]; do kill -$i 1 2>/dev/null; i=$((i+1)); done; true")
    await held.run("grep SigIgn /proc/self/status")
    assert held.text(2).split() == [b"SigIgn:", b"0000000000000000"]


async def test_garbage_and_fake_reports_are_ignored(boxed: Held) -> None:
    """What comes through the FIFOs is a claim of the job: only the running step's number and nonce count."""
    res = "/proc/1/fd/5"
    fake = (
        f"head -c 400000 /dev/zero | tr '\\0' x > {res}; printf '\\ndone 1 0 0\\ndone 1\\nhello 1\\n' > {res}; exit 7"
    )
    assert (await boxed.run(fake)).exit_code == 7
    assert (await boxed.run("exit 4")).exit_code == 4


async def test_a_job_that_steals_the_control_channel_fails_only_itself(boxed: Held) -> None:
    """A step that does not begin within 5 s ends its sandbox, and the sentence says why."""
    await boxed.run("cat /proc/1/fd/3 > /dev/null &")
    result = await boxed.run("true")
    while result.cause is None:  # who of two readers gets a line is the kernel's choice; one day it is the thief
        result = await boxed.run("true")
    assert result.cause is Cause.CONTROL_TAKEN
    assert "control channel" in result.sentence
    assert (await boxed.client.end()).cause is Cause.CONTROL_TAKEN


async def test_the_fifos_have_no_name_in_the_sandbox_and_the_folder_is_read_only(boxed: Held) -> None:
    """A job finds its script, and nothing that it could take away from the next step."""
    await boxed.run("ls /hr; touch /hr/x 2>/dev/null || echo refused")
    assert boxed.text() == b"1\ncontrol\nrefused\n"


async def test_a_steps_files_are_removed_when_it_ends(held: Held) -> None:
    """They hold secrets."""
    await held.run("true")
    assert sorted(path.name for path in (held.folder / "io").iterdir()) == ["control"]


async def test_very_many_small_writes_arrive_without_wearing_the_machine_out(held: Held) -> None:
    """A chatty step is read in gulps: the supervisor's own time stays a small part."""
    before = cpu_seconds(held.client.pid)
    await held.run("import os\nfor i in range(200_000): os.write(1, b'x')", shell="python")
    assert held.text() == b"x" * 200_000
    assert cpu_seconds(held.client.pid) - before < 0.1


@pytest.fixture
def pids(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A cgroup with at most 60 processes."""
    root = Path("/sys/fs/cgroup/pids") if Path("/sys/fs/cgroup/pids").is_dir() else Path("/sys/fs/cgroup")
    group = root / f"headrace-test-{os.getpid()}"
    group.mkdir()
    (group / "pids.max").write_text("60")
    yield group
    while left := (group / "cgroup.procs").read_text().split():
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.01)
    group.rmdir()


@pytest.mark.root
async def test_a_fork_bomb_is_killed_with_its_step(start: Starter, pids: Path) -> None:
    """KILL is repeated until none is left, and the control shell reports with builtins alone."""
    held = await start()
    await held.client.launch(bubblewrap(held.folder, cgroups=(pids,)), cgroups=(pids,))
    bomb = "trap '' TERM; b() { b | b & b; }; b 2>/dev/null & while :; do sleep 1; done"
    result = await held.run(bomb, timeout_ms=300, grace_ms=200)
    assert result.cause in {Cause.STEP_TIMED_OUT, Cause.STEP_FAILED}
    assert (await held.run("echo on")).cause is None
    await held.client.end()


@pytest.mark.root
async def test_a_job_that_fills_its_limit_of_processes_is_told_so(start: Starter, pids: Path) -> None:
    """The next step cannot be begun: not the machinery's fault, and not an unknown one."""
    held = await start()
    await held.client.launch(bubblewrap(held.folder, cgroups=(pids,)), cgroups=(pids,))
    fill = """
import os, time
while True:
    try:
        if not os.fork():
            time.sleep(100)
    except OSError:
        print("full", flush=True)
        time.sleep(0.01)
"""
    await held.run("python3 - <<'END' & \n" + fill + "END\nsleep 0.5; true")
    while int((pids / "pids.current").read_text()) < 60:  # noqa: ASYNC110 - a count has no event
        await asyncio.sleep(0.01)
    result = await held.run("true")
    assert (result.cause, "limit of processes" in result.sentence) == (Cause.CONTROL_TAKEN, True)
    await held.client.end()


@pytest.mark.root
async def test_a_job_under_any_uid_can_use_the_fifos(start: Starter) -> None:
    """Nobody knows the uid of an image's user; /dev/stdout and /dev/stderr have to work for it, too."""
    held = await start()
    for place in (held.folder, held.folder.parent):
        place.chmod(0o711)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
    await held.client.launch(Spawn((*nobody, *plain(held.folder).argv), env=ENV))
    result = await held.run("id -u; echo out > /dev/stdout; echo err > /dev/stderr; exit 3")
    assert (result.exit_code, held.text()) == (3, b"65534\nout\nerr\n")


async def test_orphans_of_a_step_are_collected_by_the_next(boxed: Held) -> None:
    """Zombies count against the limit of processes."""
    await boxed.run("i=0; while [ $i -lt 20 ]; do (sleep 0.05 &); i=$((i+1)); done; true")
    await boxed.run("sleep 0.3")
    await boxed.run("grep -l '^State:.Z' /proc/[0-9]*/status | wc -l")
    assert boxed.text(3) == b"0\n"


def kilobytes(pid: int, *names: str) -> int:
    """The sum of these fields of what the process takes of the memory."""
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(words[1]) for words in lines if words[0].removesuffix(":") in names)


async def test_a_supervisor_and_its_guard_are_small(boxed: Held) -> None:
    """There is a pair of them for each job: what they take, a hundred slots take a hundred times.

    The guard's pages were the supervisor's when it was forked: those that the supervisor has written to since count.
    """
    await boxed.run("true")
    pid = boxed.client.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (guard,) = [int(child) for child in children if Path(f"/proc/{child}/exe").readlink().name.startswith("python")]
    assert kilobytes(guard, "Private_Clean", "Private_Dirty") < 4 << 10
    assert kilobytes(pid, "Pss") < 12 << 10


async def test_secrets_are_masked_in_what_is_spooled(held: Held) -> None:
    """Also one that the job writes in two pieces."""
    await held.client.secrets([b"hunter2"])
    await held.run("printf 'a hun'; sleep 0.3; echo 'ter2 b'")
    assert held.text() == b"a *** b\n"


async def test_what_is_told_outside_of_the_log_is_masked_like_the_log(held: Held) -> None:
    """A failed assertion quotes what it compared: a report of tests may hold a secret too."""
    await held.client.secrets([b"hunter2"])
    assert await held.client.masked(["expected hunter2", "got ä"]) == ["expected ***", "got ä"]


async def test_a_step_that_is_asked_for_again_is_not_run_again(held: Held) -> None:
    """An agent that was started again asks for the step that it knows of."""
    step = held.step(1, "echo once; sleep 0.2")
    first, second = await asyncio.gather(held.client.step(step), held.client.step(step))
    assert first == second == await held.client.step(step)
    assert held.text() == b"once\n"


async def test_too_large_an_environment_is_refused_in_one_sentence(held: Held) -> None:
    """Before anything is started; the next step runs."""
    result = await held.run("true", env={"BIG": "x" * 140_000})
    assert (result.cause, result.exit_code) == (Cause.STEP_FAILED, None)
    assert "variable BIG is 140004 bytes long" in result.sentence
    assert (await held.run("true")).cause is None


async def test_a_sandbox_that_does_not_start_is_the_machinerys_fault(start: Starter) -> None:
    """With what the starter said."""
    held = await start()
    spawn = plain(held.folder)

    with pytest.raises(JobProblem, match="/no/such/program"):
        await held.client.launch(Spawn(("/no/such/program", *spawn.argv)))
    assert (await held.client.end()).cause is Cause.ERRORED


async def test_bubblewraps_own_words_are_in_the_sentence(start: Starter) -> None:
    """A person has to mend it."""

    held = await start()
    with pytest.raises(JobProblem, match=r"did not start: bwrap: .*no-such-folder"):
        await held.client.launch(
            Spawn((str(BWRAP), "--json-status-fd", "{status_fd}", "--bind", "/no-such-folder", "/", "sh"))
        )
