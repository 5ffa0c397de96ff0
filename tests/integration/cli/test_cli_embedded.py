"""The embedded coordinator: the real one, owned by real commands, and gone with them."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from headrace.cli.embedded import Embedded, Endpoint, write_private
from headrace.cli.processes import stop_orphans
from tests.harness.command_line import CommandLine, git_repository
from tests.harness.fake_coordinator import TOKEN, FakeCoordinator

pytestmark = pytest.mark.timeout(180)

OWNER = """
import os, sys
from pathlib import Path
from headrace.cli.embedded import Embedded
from headrace.errors import HeadraceError
try:
    with Embedded(Path(sys.argv[1]), os.environ).own(with_agent=False, listen=sys.argv[2]) as owner:
        print("up", flush=True)
        sys.stdin.read()
except HeadraceError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
"""


def start_owner(state: Path, listen: str = "127.0.0.1:0") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(state / "headrace"), listen],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def processes_of(state: Path) -> list[str]:
    """Command lines of all processes that have to do with this state folder."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit() and int(each.name) != os.getpid():
            try:
                line = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if str(state) in line:
                found.append(line)
    return found


def gone(state: Path, seconds: float = 30) -> list[str]:
    """What is left of it after so long; the kernel tells nobody when foreign processes end."""
    deadline = time.monotonic() + seconds
    while (left := processes_of(state)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


@pytest.fixture
def state(tmp_path):
    yield tmp_path / "s"
    left = gone(tmp_path / "s")
    assert not left, left


@pytest.fixture
def headrace(tmp_path, state):
    git_repository(tmp_path / "demo", {"headrace.yml": "name: demo"})
    return CommandLine(tmp_path / "demo", state)


def test_a_command_that_reads_starts_the_coordinator_for_its_own_length(headrace, state):
    """`headrace runs` on the next morning answers, and leaves no process behind."""
    done = headrace("runs")
    assert (done.code, done.out) == (0, "no run yet: start one with `headrace run`\n"), done.err
    assert processes_of(state) == []
    assert not (state / "headrace/endpoint.json").exists()
    assert (headrace("logs").code, headrace("show", "7").code) == (2, 2)


def test_others_use_the_coordinator_of_a_living_owner(headrace, state):
    """One coordinator a state folder: its address is in a file that only its user can read."""
    owner = start_owner(state)
    try:
        assert owner.stdout.readline() == "up\n"
        file = state / "headrace/endpoint.json"
        assert file.stat().st_mode & 0o777 == 0o600
        endpoint = json.loads(file.read_text())
        assert headrace("pools").code == 0, "a command that starts none finds the living one"
        assert json.loads(file.read_text()) == endpoint
        assert len([line for line in processes_of(state) if "-m headrace coordinator" in line]) == 1
    finally:
        owner.communicate("")
    assert owner.returncode == 0
    assert gone(state, 0) == []
    assert headrace("pools").code == 3


def test_the_daemons_of_an_owner_that_was_killed_die_with_it(headrace, state):
    """`kill -9` of a terminal must not leave a database running; the next command goes on with its data."""
    owner = start_owner(state)
    assert owner.stdout.readline() == "up\n"
    owner.kill()
    owner.communicate()
    assert gone(state) == []
    assert (state / "headrace/endpoint.json").exists(), "nobody was there to remove it"
    assert headrace("runs").code == 0


def test_an_owner_that_is_terminated_stops_its_daemons_first(headrace, state):
    """TERM is not KILL: the database is shut down in order."""
    owner = start_owner(state)
    assert owner.stdout.readline() == "up\n"
    owner.terminate()
    owner.communicate()
    assert owner.returncode == 130
    assert gone(state, 0) == []


def test_a_port_in_use_is_one_sentence_and_nothing_is_left(state):
    """Bad input of the daemon stays bad input of the command."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        owner = start_owner(state, listen=address)
        out, _ = owner.communicate()
    assert owner.returncode in {2, 3}
    assert f"cannot listen on {address}" in out
    assert "set --listen (HEADRACE_LISTEN) to a free HOST:PORT" in out
    assert len(out.strip().splitlines()) == 1, out


def test_commands_that_start_at_once_share_or_wait(headrace, state):
    """Two terminals, one moment: both get their answer."""
    first, second = headrace.start("runs"), headrace.start("runs", "--json")
    answers = [each.communicate(timeout=120) for each in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], answers
    assert json.loads(answers[1][0]) == []


def test_who_comes_second_uses_the_coordinator_of_who_came_first_while_that_one_still_works(tmp_path):
    """Two `headrace run` at one moment both find nobody: the loser must not wait for the lock until the other's end."""
    folder, entered = tmp_path / "state", threading.Event()

    class Late(Embedded):
        def live(self, *, with_agent: bool) -> Endpoint | None:
            """Looks as one does who looked a moment too early: nobody is there, then somebody has the lock."""
            if not entered.is_set():
                entered.set()
                return None
            return super().live(with_agent=with_agent)

    folder.mkdir()
    with FakeCoordinator() as fake, (folder / "owner.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        endpoint = Endpoint(fake.address, TOKEN, os.getpid(), "", agent=True)
        write_private(folder / "endpoint.json", json.dumps(asdict(endpoint)))
        with Late(folder, {}).live_or_own(with_agent=True) as found:
            assert found == endpoint


def test_ctrl_c_while_it_starts_leaves_nothing(headrace, state):
    """Impatience is no reason for an orphan."""
    process = headrace.start("runs")
    deadline = time.monotonic() + 30
    while not processes_of(state / "headrace/coordinator") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (130, "headrace: interrupted")


def test_two_ctrl_c_while_it_starts_leave_nothing_either(headrace, state):
    """Who is impatient twice waits a moment longer: a database without an owner would go on for nobody."""
    process = headrace.start("runs")
    deadline = time.monotonic() + 30
    while not any("initdb" in line or "bin/postgres" in line for line in processes_of(state)):
        assert time.monotonic() < deadline
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert gone(state, 0) == []


STUBBORN = """
import os, signal, sys, time
told = []
for each in (signal.SIGTERM, signal.SIGINT):
    signal.signal(each, lambda number, _: told.append(number))
os.write(int(sys.argv[sys.argv.index("--ready-fd") + 1]), b"{}\\n")
while len(told) < int(sys.argv[1]):
    time.sleep(0.01)
print("cleaned up")
"""
OWNER_OF_STUBBORN = """
import sys
from pathlib import Path
from headrace.cli.processes import Daemon, Interrupts, Processes
folder, interrupts = Path(sys.argv[1]), Interrupts()
processes = Processes(folder / "children.json", folder, interrupts)
with interrupts.heeded():
    processes.start(Daemon("agent", (sys.executable, "-c", sys.argv[2], sys.argv[3]), {}))
    try:
        print("up", flush=True)
        sys.stdin.read()
    except KeyboardInterrupt:
        print("stopping", flush=True)
        print(processes.stop(), flush=True)
"""


@pytest.mark.parametrize(("wants", "killed"), [(2, []), (3, []), (4, ["agent"])])
def test_a_ctrl_c_while_daemons_stop_is_a_harder_word_and_a_kill_only_the_last(tmp_path, wants, killed):
    """An agent that is killed leaves its mounts: told again it cancels, then kills its jobs."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER_OF_STUBBORN, str(tmp_path), STUBBORN, str(wants)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as owner:  # fmt: skip
        assert owner.stdout.readline() == "up\n"
        owner.send_signal(signal.SIGINT)
        assert owner.stdout.readline() == "stopping\n"
        for _ in range(3):
            owner.send_signal(signal.SIGINT)
        assert owner.communicate(timeout=60)[0] == f"{killed}\n"
    assert ("cleaned up" in (tmp_path / "agent.log").read_text()) == (not killed)


def test_orphans_are_ended_and_a_reused_process_id_is_spared(tmp_path):
    """The record names process id and start time: only both together mean the process that was meant."""
    orphan = subprocess.Popen(["sleep", "600"])
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        started = Path(f"/proc/{orphan.pid}/stat").read_text().rpartition(")")[2].split()[19]
        record = tmp_path / "children.json"
        record.write_text(json.dumps([
            {"pid": orphan.pid, "started": started}, {"pid": bystander.pid, "started": "1"},
        ]))  # fmt: skip
        stop_orphans(record)
        assert orphan.wait(1) == -signal.SIGTERM
        assert bystander.poll() is None
        assert not record.exists()
    finally:
        for each in (orphan, bystander):
            each.kill()
            each.wait()
