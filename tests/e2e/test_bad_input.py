"""What a person does wrong gets one sentence and exit code 2 or 3, never a traceback, and loses nothing."""

from __future__ import annotations

import socket

import pytest

from headrace.client import Source, SyncClient
from headrace.errors import HeadraceError
from tests.harness.command_line import Ended
from tests.harness.waiting import wait_for

pytestmark = pytest.mark.timeout(240)

GOOD = "name: n\nstages: [{name: a, jobs: {j: {steps: [{run: 'true'}]}}}]\n"
CYCLE = """name: n
stages:
  - name: a
    jobs:
      one: {needs: [two], steps: [{run: "true"}]}
      two: {needs: [one], steps: [{run: "true"}]}
"""
UNKNOWN_ARTIFACT = """name: n
stages:
  - name: a
    jobs: {one: {steps: [{use: artifact/dist}]}}
"""


def refused(done: Ended, code: int, *words: str) -> None:
    """One sentence on stderr, nothing else there, with these words in it."""
    said = done.err.strip().splitlines()
    assert done.code == code, done.err + done.out
    assert len(said) == 1, done.err
    assert all(word.lower() in said[0].lower() for word in words), said[0]
    assert len(said[0]) < 600, "a sentence, not a dump"


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("name: n\nstages: [{name: a\n", ("headrace.yml:2:10:", "not closed")),
        ("name: n\nstagess: []\n" + GOOD[8:], ("headrace.yml:2:1:", "stagess", "stages")),
        (CYCLE, ("headrace.yml:6:21:", "for ever", "one → two → one")),
        (UNKNOWN_ARTIFACT, ("headrace.yml:4:", "artifact", "dist")),
    ],
    ids=["bad YAML", "unknown key", "cycle", "unknown artifact"],
)
def test_a_wrong_pipeline_file_is_refused_with_its_position(scene, file, words):
    """Nothing is started for it: the sentence is there at once, and `validate` says the same."""
    scene.repository(file)
    refused(scene("run"), 2, *words)
    refused(scene("validate", "headrace.yml"), 2, *words)
    assert not scene.state.joinpath("coordinator").exists()


def test_a_file_a_ref_a_repository_that_are_not_there(scene):
    """Each names what was looked for, where, and what to do."""
    repository = scene.repository(GOOD)
    refused(scene("run", "other.yml"), 2, "other.yml", "headrace init")
    refused(scene("validate", "other.yml"), 2, "other.yml")
    repository.git("branch", "release")
    refused(scene("run", "--ref", "relaese"), 2, "relaese", "did you mean release")
    refused(scene("run", "--repo", str(scene.folder / "nowhere")), 2, "nowhere")
    refused(scene("run", within="home"), 2, "no git repository", "git init")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
    for url in (f"git://127.0.0.1:{port}/x.git", f"http://127.0.0.1:{port}/x.git"):
        refused(scene("run", "--repo", url), 2, url, "cannot be reached")


def test_a_coordinator_that_cannot_be_reached(scene):
    """Exit code 3, the address, and no minute of silence before it."""
    scene.repository(GOOD)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
    for command in (("runs",), ("run",), ("show", "1"), ("agents",)):
        refused(scene(*command, HEADRACE_URL=address, HEADRACE_TOKEN="x"), 3, address)
    refused(scene("agents"), 3, "no coordinator", "headrace up")


@pytest.mark.parametrize("option", ["--listen", "--http-listen"])
def test_a_port_in_use(scene, option):
    """Two coordinators never share one port in silence."""
    scene.repository(GOOD)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        free = {"--listen": "127.0.0.1:0", "--http-listen": "127.0.0.1:0"} | {option: address}
        words = [word for pair in free.items() for word in pair]
        refused(scene("up", *words), 2, address)
        folder = str(scene.folder / "coordinator")
        refused(scene("coordinator", "--data-dir", folder, "--blob-listen", "127.0.0.1:0", *words), 2, address)
    assert scene("run").code == 0, "nothing is lost by it"


def test_a_data_directory_that_is_of_a_newer_version_or_in_use(scene):
    """Neither is touched; the version put back, the data are all there."""
    scene.repository(GOOD)
    assert scene("run").code == 0
    version = scene.state / "coordinator" / "version"
    kept = version.read_text()
    version.write_text("99\n")
    refused(scene("run"), 2, "newer", str(scene.state))
    version.write_text(kept)
    with scene.up() as up:
        words = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--blob-listen", "127.0.0.1:0")
        data = str(scene.state / "coordinator")
        refused(scene("coordinator", "--data-dir", data, *words), 2, "in use", data)
        done = scene("up", *words[:4])
        assert done.code in {2, 3}
        assert up.address in done.err
        assert len(scene.json("runs")) == 1


def test_an_agent_that_may_not_come_in(scene):
    """A wrong token; a second machine under one name: the first one goes on undisturbed."""
    scene.repository(GOOD)
    with scene.up() as up:
        refused(_last_line(up.agent("stranger", token="wrong").end()), 3, "token")
        first = up.agent("twin")
        up.connected("twin", "local")
        second = scene.start(
            "agent", "--url", up.address, "--name", "twin", "--data-dir", str(scene.folder / "agent-other"),
            HEADRACE_TOKEN=up.token("agent"),
        )  # fmt: skip
        refused(_last_line(second.end()), 3, "twin")
        same = scene.start(
            "agent", "--url", up.address, "--name", "twin", "--data-dir", str(scene.folder / "agent-twin"),
            HEADRACE_TOKEN=up.token("agent"),
        )  # fmt: skip
        refused(_last_line(same.end()), 2, "in use")
        assert first.process.poll() is None
        assert "twin" in up.presences()["connected"]
        first.process.terminate()
        assert first.end().code == 0


def test_a_client_with_a_wrong_token(scene):
    """Not allowed is exit code 3, whatever was asked."""
    scene.repository(GOOD)
    with scene.up() as up:
        refused(scene("runs", HEADRACE_URL=up.address, HEADRACE_TOKEN="wrong"), 3, "token")
        refused(scene("run", HEADRACE_URL=up.address, HEADRACE_TOKEN=up.token("agent")), 3)


def test_a_message_over_the_size_limit(scene):
    """A pipeline file that is too large is refused by figures, a message that is too large by the client itself."""
    scene.repository(GOOD + "# " + "x" * (1 << 20) + "\n")
    refused(scene("run"), 2, "headrace.yml:1:1:", "1,048,576")
    scene.repository(GOOD + "# " + "x" * (5 << 20) + "\n", name="second")
    refused(scene("run", within="second"), 2, "headrace.yml", "bytes")
    with scene.up() as up, SyncClient(up.address, up.token("client")) as client:
        with pytest.raises(HeadraceError) as caught:
            client.create_run(Source(repository="/x", commit="0" * 40), b"x" * (17 << 20))
        assert caught.value.exit_code in {2, 3}
        assert "MiB" in str(caught.value) or "bytes" in str(caught.value), str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        assert client.runs() == [], "nothing came of it, and the coordinator goes on"


@pytest.mark.docker
def test_an_image_that_does_not_exist(scene, with_docker):
    """The job failed because of its image, and says which; nothing else is blamed."""
    scene.repository(
        "name: n\nstages: [{name: a, jobs: {j: {image: 'localhost:1/no/such:1', steps: [{run: 'true'}]}}}]\n"
    )
    done = scene("run")
    assert done.code == 1, done.out + done.err
    job = scene.json("show")["jobs"][0]
    assert job["cause"] == "image_unavailable"
    assert "localhost:1/no/such:1" in job["sentence"]
    assert "job j failed (image_unavailable): image localhost:1/no/such:1 cannot be had" in done.out


def test_an_image_where_there_is_no_engine(scene):
    """A job that no agent here can ever run fails at once, with the nearest agent and what it lacks."""
    scene.repository("name: n\nstages: [{name: a, jobs: {j: {image: 'debian:12', steps: [{run: 'true'}]}}}]\n")
    done = scene("run", DOCKER_HOST=f"unix://{scene.folder}/no.sock")
    assert done.code == 1, done.out + done.err
    job = scene.json("show")["jobs"][0]
    assert job["cause"] == "unschedulable"
    assert "docker" in job["sentence"].lower()


def test_a_setting_that_is_misspelt(scene):
    """HEADRACE_POOOL would otherwise serve the wrong pool in silence."""
    scene.repository(GOOD)
    refused(_last_line(scene("agent", HEADRACE_POOOL="fast")), 2, "HEADRACE_POOOL", "HEADRACE_POOL")
    refused(_last_line(scene("coordinator", HEADRACE_LISTN="x")), 2, "HEADRACE_LISTN", "HEADRACE_LISTEN")
    refused(scene("runs", HEADRACE_TOKN="x"), 2, "HEADRACE_TOKN", "HEADRACE_TOKEN")
    refused(scene("run", HEADRACE_POOOL="fast"), 2, "HEADRACE_POOOL", "HEADRACE_POOL")
    done = scene("runs", HEADRACE_WHATEVER_ELSE="x")
    assert done.code == 0, "an unknown name that is near to none is a warning: Kubernetes makes such"
    assert "HEADRACE_WHATEVER_ELSE" in done.err


def test_words_that_are_no_command_line(scene):
    """Usage errors of every family."""
    scene.repository(GOOD)
    for words in (
        ("rum",), ("run", "--sandbox", "vm"), ("run", "--param", "novalue"), ("show", "seven"),
        ("pools", "stop", "default"), ("agent", "--label", "x"), ("agent", "--slots", "0"),
    ):  # fmt: skip
        done = scene(*words)
        assert done.code == 2, (words, done.err)
        assert len(done.err.strip().splitlines()) == 1, done.err


def _last_line(done: Ended) -> Ended:
    """Daemons log as well: the sentence is the last line."""
    lines = [line for line in done.err.strip().splitlines() if line.startswith("headrace")]
    return Ended(done.code, done.out, "\n".join(lines))


def test_a_job_or_run_that_is_not_there(scene):
    """Asked for by a wrong number or name: what there is, is named."""
    scene.repository(GOOD)
    assert scene("run").code == 0
    refused(scene("show", "99"), 2, "99")
    refused(scene("logs", "1", "jj"), 2, "jj")
    refused(scene("cancel", "1"), 3, "no coordinator")
    with scene.up() as up:
        refused(scene("retry", "1", "jj"), 2, "jj")
        refused(scene("drain", "nobody"), 2, "nobody")
        refused(scene("pools", "pause", "nothing"), 2, "nothing")
        assert wait_for(up.presences, "the agents")
