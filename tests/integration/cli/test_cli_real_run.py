"""`headrace run` for real: the real coordinator, agent and sandbox, started and gone with one command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.harness.command_line import CommandLine, Terminal, git_repository

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="the harness looks at all processes: run as root"),
    pytest.mark.root,
]

PIPELINE = """
name: demo
stages:
  - name: build
    jobs:
      wheel:
        steps: [{run: "cat note.txt; mkdir dist; echo hi > dist/a.txt"}]
        artifacts: [{name: dist, paths: ["dist/*"]}]
  - name: test
    jobs:
      unit: {steps: [{use: artifact/dist}, {run: "cat dist/a.txt; seq 1 30"}]}
"""
SLOW = "name: slow\nstages: [{name: a, jobs: {slow: {grace: 2s, steps: [{run: 'echo working; sleep 600'}]}}}]\n"


def processes_of(folder: Path) -> list[str]:
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit() and int(each.name) != os.getpid():
            try:
                line = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if str(folder) in line:
                found.append(line)
    return found


@pytest.fixture
def headrace(tmp_path):
    git_repository(tmp_path / "demo", {"headrace.yml": PIPELINE, "slow.yml": SLOW, "note.txt": "committed\n"})
    yield CommandLine(tmp_path / "demo", tmp_path / "s")
    deadline = time.monotonic() + 20
    while (left := processes_of(tmp_path / "s")) and time.monotonic() < deadline:
        time.sleep(0.05)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if str(tmp_path) in line]
    for mount in reversed(mounts):  # what a test finds left over must not stay left over
        subprocess.run(["umount", mount], check=True)
    assert (left, mounts) == ([], [])


def test_a_run_builds_what_is_on_disk_keeps_its_artifact_and_leaves_nothing(headrace):
    """The first command of a newcomer; `logs`, `show` and `artifacts` answer after everything was stopped."""
    (headrace.folder / "note.txt").write_text("edited\n")
    done = headrace("run", seconds=120)
    assert done.code == 0, done.out + done.err
    assert "wheel | edited" in done.out
    assert "+ 1 changed file" in done.out.splitlines()[0]
    kept = Path(headrace.environment["XDG_STATE_HOME"]) / "headrace/artifacts/1/dist"
    assert f"artifact dist (1 file, 3 B): {kept}" in done.out
    assert [each.read_text() for each in kept.rglob("*") if each.is_file()] == ["hi\n"]
    assert "".join(f"{n}\n" for n in range(1, 31)) in headrace("logs", "1", "unit").out
    assert json.loads(headrace("show", "--json").out)["state"] == "passed"
    assert "dist" in headrace("artifacts").out


def test_ctrl_c_cancels_and_a_terminal_shows_it_live(headrace):
    """One interrupt: cancel with grace, exit 130, no process, no mount."""
    screen = Terminal(headrace, "run", "slow.yml")
    screen.until(lambda text: "▶ " in text and "working" in text, seconds=90)
    screen.interrupt()
    assert screen.end(60) == 130, screen.text
    assert "run 1 canceled" in screen.text


def test_ctrl_c_while_an_owner_stops_leaves_nothing(headrace):
    """The job of another command runs on, its person does not want to wait: that job is canceled and cleaned up."""
    up = headrace.start("up", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--json")
    state = Path(headrace.environment["XDG_STATE_HOME"]) / "headrace"
    try:
        up.stdout.readline()
        assert headrace("run", "slow.yml", "--detach").code == 0
        with headrace.start("logs", "1", "-f") as log:
            assert "working\n" in log.stdout
            runtime = Path("/run/headrace") / (state / "agent/instance").read_text().strip()
            assert runtime.exists()
            up.send_signal(signal.SIGINT)
            assert "stopping" in up.stderr.readline()
            while (state / "endpoint.json").exists():
                assert up.poll() is None
            up.send_signal(signal.SIGINT)
            assert up.wait(60) == 0
    finally:
        up.terminate()
        up.communicate(timeout=60)
    assert not runtime.exists()


def test_up_serves_other_commands_and_ends_on_term(headrace):
    """`headrace up` in one terminal, `headrace run` in another; the owner stops in order."""
    free = {"HEADRACE_LISTEN": "127.0.0.1:0", "HEADRACE_HTTP_LISTEN": "127.0.0.1:0"}
    up = headrace.start("up", "--json", **free)
    try:
        address = json.loads(up.stdout.readline())["address"]
        done = headrace("run", "--json", seconds=120)
        assert done.code == 0, done.err
        assert [agent["name"] for agent in json.loads(headrace("agents", "--json").out)] == ["local"]
        token = (Path(headrace.environment["XDG_STATE_HOME"]) / "headrace/coordinator/tokens/client").read_text()
        assert headrace("runs", HEADRACE_URL=address, HEADRACE_TOKEN=token.strip()).code == 0
        assert headrace("runs", HEADRACE_URL=address, HEADRACE_TOKEN="wrong").code == 3
    finally:
        up.send_signal(signal.SIGTERM)
        _, err = up.communicate(timeout=60)
    assert up.returncode == 0, err
