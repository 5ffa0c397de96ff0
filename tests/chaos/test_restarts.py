"""Agents and whole machines that are started again, and what dies below a job: nothing is lost, nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.engine import Engine, own_engine
from tests.chaos.power import instance_of, left_of, power_off
from tests.chaos.proxy import Proxy
from tests.chaos.work import BUBBLEWRAP, Counting, User
from tests.e2e.scene import pids, sandboxes
from tests.harness.images import BUSYBOX
from tests.harness.waiting import wait_for
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import Daemon

pytestmark = [pytest.mark.timeout(300), pytest.mark.root, pytest.mark.docker]

DOCKER = f"image: '{BUSYBOX}', network: none"
ORPHANS_S = 10.0


@pytest.fixture
def engine() -> Iterator[Engine]:
    folder = Path(tempfile.mkdtemp(prefix="hr-engine-", dir="/tmp"))
    try:
        with own_engine(folder / "e") as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def of(make_coordinator: Make) -> Daemon:
    made = make_coordinator()
    made.start()
    return made


@pytest.fixture
def side(of: Daemon, make_agent: Make, engine: Engine) -> Daemon:
    """An agent with that engine; not yet started."""
    made = make_agent(of, DOCKER_HOST=engine.url)
    made.arguments["slots"] = "3"
    return made


def nothing_left(side: Daemon, engine: Engine) -> bool:
    """Of any job."""
    return not engine.containers(instance_of(side)) and not left_of(side) and not sandboxes(side.folder)


def spooled(side: Daemon) -> int:
    """Bytes of logs on the agent's disk."""
    return sum(file.stat().st_size for file in (side.folder / "logs").rglob("*") if file.is_file())


def test_a_machine_that_loses_its_power_loses_no_line_and_keeps_no_orphan(
    of: Daemon, side: Daemon, engine: Engine
) -> None:
    """First the agent alone is killed: started again it adopts what runs, in bubblewrap and in docker. Then nobody
    hears the machine, and it goes dark: what the spool had is handed in, what the jobs left is removed within 10 s,
    and they are done again."""
    work = [
        Counting("wrapped", 900, keys="sandbox: bubblewrap, network: full"),
        Counting("contained", 900, keys=DOCKER),
    ]
    with Proxy(of.facts["address"]) as link, User(of) as user:
        side.arguments["url"] = link.address
        side.start()
        run = user.begin(work)
        user.until_it_writes(run, *work)
        side.process.kill()
        side.process.wait()
        side.start()
        user.until_it_writes(run, *work)
        assert [user.states(run, each.name) for each in work] == [["running"]] * 2, "adopted"
        user.pause("default")
        link.stall()
        unheard = {each: user.log(run, each.name) for each in work}
        size = spooled(side)
        wait_for(lambda: spooled(side) > size + 2000, "lines that nobody hears", 20)
        power_off(side, engine)
        link.cut()
        link.resume()
        engine.start()
        side.start()
        wait_for(lambda: nothing_left(side, engine), "no orphan", ORPHANS_S)
        wait_for(lambda: [user.states(run, each.name) for each in work] == [["errored"]] * 2, "both are known", 20)
        for each in work:
            assert "supervisor" in user.attempts(run, each.name)[0].sentence
            wait_for(lambda of=each: len(user.log(run, of.name)) > len(unheard[of]), "the spool is handed in", 10)  # type: ignore[misc]
        user.pause("default", undo=True)
        user.until_over(run)
        for each in work:
            user.judge(run, each, ["errored", "passed"])
        wait_for(lambda: nothing_left(side, engine), "nothing of the second attempts", ORPHANS_S)
        side.end()


def test_what_dies_below_a_job_is_named_and_the_job_is_done_again(of: Daemon, side: Daemon, engine: Engine) -> None:
    """A sandbox, a supervisor, and dockerd: killed, a job goes on without it, until it is started again and ends what
    it no longer holds. Each is an `errored` attempt that says what died, and a second one that passes."""
    wrapped = Counting("wrapped", 900, keys=BUBBLEWRAP)
    held, contained = Counting("held", 900, keys=DOCKER), Counting("contained", 900, keys=DOCKER)
    side.start()
    with User(of) as user:
        run = user.begin([wrapped, held, contained])
        user.until_it_writes(run, wrapped, held, contained)
        attempt = {name: user.attempts(run, name)[0].id for name in ("wrapped", "held")}
        (sandbox,) = sandboxes(side.folder / "workspaces" / str(attempt["wrapped"]))
        os.kill(sandbox, signal.SIGKILL)
        for pid in pids("supervisor/main.py", f"{side.folder}/logs/{attempt['held']}"):
            os.kill(pid, signal.SIGKILL)
        engine.kill()
        user.until_it_writes(run, contained)
        assert user.states(run, "contained") == ["running"], "it needs no engine to go on"
        engine.start()
        user.until_over(run)
        for job in (wrapped, held, contained):
            user.judge(run, job, ["errored", "passed"])
        causes = {job.name: user.attempts(run, job.name)[0] for job in (wrapped, held, contained)}
        assert {name: str(each.cause) for name, each in causes.items()} == {
            "wrapped": "sandbox_killed",
            "held": "errored",
            "contained": "sandbox_killed",
        }
        assert "supervisor" in causes["held"].sentence
        wait_for(lambda: nothing_left(side, engine), "nothing of any attempt", ORPHANS_S)
    side.end()
