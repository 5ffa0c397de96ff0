"""The command line against a fake coordinator over real gRPC: exit codes, output, Ctrl-C, the live view."""

from __future__ import annotations

import json
import signal
import time

import grpc
import pytest

from headrace.v1 import blob_pb2, common_pb2, fleet_pb2
from tests.harness.command_line import Terminal
from tests.harness.faults import Fault, bad_request
from tests.harness.scripted_runs import PIPELINE, ended, fails, passes, running, until_canceled, until_killed


def test_a_run_that_passes_prints_prefixed_lines_and_a_summary(world):
    """Not a terminal: lines that grep can rely on, whole although the frames were cut anywhere."""
    here = world()
    done = here.headrace("run")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line for line in lines if line.startswith("unit")][:8] == [
        "unit * queued",
        "unit * running on one",
        "unit > step 1: pytest -q",
        "unit | collecting",
        "unit | partial line",
        "unit | green",
        "unit | no newline",
    ] or sorted(line for line in lines if line.startswith("unit |")) == [
        "unit | collecting", "unit | green", "unit | no newline", "unit | partial line",
    ]  # fmt: skip
    assert "artifact dist (1 file, 5 B): headrace artifacts 1 --download DIR" in lines
    assert lines[-1] == "run 1 passed in 1.2 s"
    (created,) = here.fake.requests("Create")
    assert created.source.commit == here.commit
    assert created.source.bundle_sha256 in here.fake.blobs, "a path goes to a coordinator elsewhere as a bundle"
    assert not created.source.own_code, "own code is for a local caller alone"
    assert created.pipeline_text == PIPELINE.encode()


def test_a_run_that_fails_exits_1_and_names_job_step_code_and_last_lines(world):
    """The end of the output is what a person sees first."""
    done = world(fails).headrace("run")
    assert done.code == 1
    assert "job unit failed (step_failed) in step 1, pytest -q: exit code 3" in done.out
    tail = done.out.partition("the last 20 lines of its log:")[2]
    assert "| line 10\n" in tail
    assert "| line 29\n" in tail
    assert "| line 9\n" not in tail


def test_json_is_one_event_a_line_and_ends_with_the_exit_code(world):
    """A script reads lines; stdout holds nothing else."""
    done = world(fails).headrace("run", "--json")
    events = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 1
    assert events[0]["event"] == "begin"
    assert (events[-1]["event"], events[-1]["exit_code"], events[-1]["run"]["state"]) == ("end", 1, "failed")
    text = "".join(e["record"]["text"] for e in events if e["event"] == "log" and e["record"]["kind"] == "bytes")
    assert text == "".join(f"line {number}\n" for number in range(30))


def test_the_connection_may_be_cut_and_the_run_is_followed_all_the_same(world):
    """Watch and tail both go on where they were."""
    here = world()
    here.fake.faults["Create"].append(Fault(done_all_the_same=True))
    here.fake.faults["Watch"] += [Fault(after_messages=1), Fault()]
    here.fake.faults["Tail"] += [Fault(after_messages=2), Fault()]
    done = here.headrace("run")
    assert done.code == 0, done.err
    assert sorted(line for line in done.out.splitlines() if line.startswith("unit |")) == [
        "unit | collecting", "unit | green", "unit | no newline", "unit | partial line",
    ]  # fmt: skip
    assert len(here.fake.runs) == 1


def test_ctrl_c_cancels_with_grace_and_exits_130(world):
    """The first interrupt is a request, and is said so."""
    here = world(until_canceled)
    process = here.headrace.start("run")
    while "working" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "canceling run 1; once more kills it" in err
    assert "run 1 canceled" in out


def test_a_second_ctrl_c_kills(world):
    """Another cancel under another request id: no grace, no cleaning steps."""
    here = world(until_killed)
    process = here.headrace.start("run")
    while "working" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    here.fake.wait_for(lambda: len(here.fake.requests("Cancel")) == 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "killing run 1" in err
    first, second = here.fake.requests("Cancel")
    assert first.request_id != second.request_id


def test_a_terminal_shows_a_live_tree_and_the_log_of_the_running_job(world):
    """On a pseudo-terminal of fixed size; Ctrl-C works there too, and the summary stays."""
    here = world(until_canceled)
    screen = Terminal(here.headrace, "run")
    screen.until(lambda text: "▶ " in text and "unit" in text and "working" in text)
    screen.interrupt()
    assert screen.end() == 130
    assert "■" in screen.text
    assert "run 1 canceled in 1.2 s" in screen.text
    assert screen.text.count("\x1b[?25l") == screen.text.count("\x1b[?25h"), "the cursor is shown again"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "missing.yml"], 2, "headrace init"),
        (["run", "--ref", "nowhere"], 2, "nowhere"),
        (["run", "--repo", "http://127.0.0.1:1/x.git"], 2, "127.0.0.1:1"),
        (["run", "--repo", "/nowhere/at/all"], 2, "/nowhere/at/all"),
        (["run", "--param", "x"], 2, "--param"),
        (["run", "--param", "x=1", "--param", "x=2"], 2, "twice"),
        (["run", "--sandbox", "vm"], 2, "bubblewrap"),
        (["run", "--frob"], 2, "--frob"),
        (["show", "99"], 2, "no run 99"),
        (["show", "x"], 2, "'x' is no number of a run: `headrace runs` lists them"),
        (["show", "99999999999999999999"], 2, "no number of a run"),
        (["runs", "--limit", "0"], 2, "--limit 0: give a whole number from 1 to 200"),
        (["logs", "unit", "wheel"], 2, "'unit' is no number of a run"),
        (["agent", "--slots", "0"], 2, "--slots 0: give a whole number from 1 to 1024"),
        (["cancel", "-1"], 2, "-1"),
        (["logs", "1", "--offset", "99999999999999999999"], 2, "--offset 9"),
        (["logs", "99"], 2, "no run 99"),
        (["cancel", "99"], 2, "no run 99"),
        (["cancel"], 2, "RUN"),
        (["approve", "99"], 2, "no run 99"),
        (["approve", "x"], 2, "no number of a run"),
        (["approve"], 2, "RUN"),
        (["retry", "99"], 2, "no run 99"),
        (["artifacts", "99"], 2, "no run 99"),
        (["drain", "nobody"], 2, "no agent nobody"),
        (["pools", "pause"], 2, "name the pool"),
        (["pools", "stop", "x"], 2, "pause"),
        (["validate", "missing.yml"], 2, "missing.yml"),
        (["frob"], 2, "frob"),
        (["agent", "--label", "x"], 2, "--label"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(world, arguments, code, words):
    """What a person did wrong: what, where, how to mend it; never a traceback."""
    done = world().headrace(*arguments)
    assert done.code == code, done.err
    assert words.lower() in done.err.lower()
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert done.out == ""


def test_mistakes_that_the_coordinator_finds_are_printed_as_positions(world):
    """`file:line:column: message`, one a line, as editors read it."""
    here = world()
    details = (bad_request(("headrace.yml:2:10", "unknown key"), ("headrace.yml:3:1", "a cycle")),)
    here.fake.faults["Create"].append(Fault(grpc.StatusCode.INVALID_ARGUMENT, "2 mistakes", details=details))
    done = here.headrace("run")
    assert done.code == 2
    assert done.err.splitlines() == ["headrace.yml:2:10: unknown key", "headrace.yml:3:1: a cycle"]


def test_a_mistake_that_has_no_place_in_the_file_is_a_sentence_of_headrace(world):
    """A pool that does not exist: the coordinator knows the field, and the sentence says it."""
    here = world()
    sentence = "pool `gpu` does not exist: a pool exists from its first agent; there are `default`"
    fault = Fault(grpc.StatusCode.INVALID_ARGUMENT, sentence, details=(bad_request(("pool", sentence)),))
    here.fake.faults["Create"].append(fault)
    done = here.headrace("run")
    assert (done.code, done.err) == (2, f"headrace: {sentence}\n")


@pytest.mark.parametrize(
    ("environment", "code", "words"),
    [
        ({"HEADRACE_URL": "127.0.0.1:1"}, 3, "cannot reach the coordinator at 127.0.0.1:1"),
        ({"HEADRACE_URL": "a:b"}, 2, "HOST:PORT"),
        ({"HEADRACE_URL": "http://10.0.0.1:1"}, 2, "HEADRACE_INSECURE"),
        ({"HEADRACE_TOKEN": "wrong"}, 3, "token"),
        ({"HEADRACE_TOKNE": "x"}, 2, "did you mean HEADRACE_TOKEN"),
        ({"HEADRACE_URL": ""}, 3, "headrace up"),
    ],
)
def test_what_cannot_be_reached_is_3_and_a_wrong_setting_2(world, environment, code, words):
    """The exit code tells a script whether to try again or to ask a person."""
    done = world().headrace("agents", **environment)
    assert (done.code, words in done.err) == (code, True), done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_mistake_of_our_own_is_a_sentence_too(world):
    """Nobody but a developer wants a traceback: HEADRACE_TRACEBACK=1 shows it."""
    here = world()
    here.fake.faults["List"].append(Fault(grpc.StatusCode.INTERNAL, "oops"))
    done = here.headrace("runs")
    assert (done.code, len(done.err.splitlines())) == (3, 1)
    assert "oops" in done.err


def test_runs_are_listed_shown_and_read(world):
    """`runs`, `show`, `logs`, `artifacts`, all about the latest run of this repository, in words and JSON."""
    here = world(fails)
    here.headrace("run")
    here.fake.keep(1, "dist", {"a.whl": b"wheel"})
    assert "failed" in here.headrace("runs").out.splitlines()[1]
    assert json.loads(here.headrace("runs", "--json").out)[0]["id"] == 1
    shown = here.headrace("show").out
    assert "job unit failed (step_failed) in step 1, pytest -q: exit code 3" in shown
    assert json.loads(here.headrace("show", "1", "--json").out)["jobs"][0]["cause"] == "step_failed"
    whole = "".join(f"line {number}\n" for number in range(30))
    assert here.headrace("logs").out == whole
    assert here.headrace("logs", "1", "unit", "-f", "--offset", "14").out == whole[14:]
    assert json.loads(here.headrace("logs", "--json").out.splitlines()[-1])["complete"] is True
    assert "dist" in here.headrace("artifacts").out
    done = here.headrace("artifacts", "1", "--download", "out", "--json")
    assert json.loads(done.out)["folders"] == {"dist": "out/dist"}
    assert (here.headrace.folder / "out/dist/a.whl").read_bytes() == b"wheel"


def test_a_first_word_that_is_no_number_is_a_job_of_the_latest_run(world):
    """`headrace logs unit` is what a person types who has just seen `unit` fail."""
    here = world(fails)
    here.headrace("run")
    assert here.headrace("logs", "unit").out.startswith("line 0\n")
    assert here.headrace("retry", "unit").code == 0
    assert [(each.run_id, each.job) for each in here.fake.requests("Retry")] == [(1, "unit")]


def test_a_log_in_a_pipe_is_byte_for_byte_what_was_written(world):
    """`headrace logs | sha256sum` must agree with the job."""

    def binary(fake, run_id):
        running(fake, run_id)
        fake.write(run_id, "unit", bytes(range(256)))
        ended(fake, run_id, common_pb2.JOB_STATE_PASSED, common_pb2.RUN_STATE_PASSED, common_pb2.ATTEMPT_STATE_PASSED)

    here = world(binary)
    here.headrace("run")
    with here.headrace.start("logs", "1", "unit") as process:
        assert process.stdout.buffer.read() == bytes(range(256))
    assert process.returncode == 0


def test_an_expired_artifact_is_said_after_all_others_are_saved(world):
    """In the list it has no files; whoever downloads gets what is left, and one sentence about the rest."""
    here = world(passes)
    here.headrace("run")
    here.fake.artifacts[1]["a"] = blob_pb2.Artifact(name="a", job="build", expired=True)
    assert "expired" in here.headrace("artifacts").out
    done = here.headrace("artifacts", "--download", "out")
    assert (done.code, done.err) == (2, "headrace: artifact a of run 1 has expired\n")
    assert (here.headrace.folder / "out/dist/a.whl").exists()


@pytest.mark.parametrize("command", ["run", "runs", "logs"])
def test_a_state_folder_that_cannot_be_is_a_sentence_with_its_mend(world, tmp_path, command):
    """A file in its place, a disk that is read-only: a person's to mend, and no mistake of ours."""
    (tmp_path / "file").touch()
    done = world().headrace(command, HEADRACE_URL="", XDG_STATE_HOME=str(tmp_path / "file"))
    words = f"cannot use {tmp_path}/file/headrace: Not a directory; XDG_STATE_HOME chooses another folder"
    assert (done.code, done.err) == (3, f"headrace: {words}\n")


def test_artifacts_cannot_be_saved_where_a_file_is(world):
    """The name of a folder was a file's."""
    here = world(passes)
    here.headrace("run")
    done = here.headrace("artifacts", "--download", "headrace.yml")
    assert done.code == 2
    assert done.err == "headrace: cannot write to headrace.yml/dist: Not a directory; name another folder\n"


def test_retry_and_cancel_say_what_came_of_it(world):
    """With a coordinator elsewhere they ask and leave."""
    here = world(fails)
    here.headrace("run")
    assert "run 1 is failed" in here.headrace("retry").out
    assert json.loads(here.headrace("cancel", "1", "--json").out)["id"] == 1


def test_detach_leaves_the_run_to_the_coordinator(world):
    """The number, and how to follow it."""
    done = world(lambda fake, run_id: None).headrace("run", "--detach")
    assert (done.code, done.out) == (0, "run 1; look at it with `headrace show 1`\n")


def test_the_fleet_in_words_and_json(world):
    """agents, drain, pools."""
    here = world()
    here.fake.agents["one"] = fleet_pb2.Agent(
        name="one", pool="default", labels={"arch": "arm64"}, slots=2, busy=1, jobs=["1 unit"],
        presence=fleet_pb2.AGENT_PRESENCE_CONNECTED,
    )  # fmt: skip
    assert "arch=arm64" in here.headrace("agents").out
    assert here.headrace("agents").out.splitlines()[1].endswith("  now")
    here.fake.agents["two"] = fleet_pb2.Agent(
        name="two",
        pool="default",
        presence=fleet_pb2.AGENT_PRESENCE_QUARANTINED,
        sentence="its disk failed",
    )
    shown = here.headrace("agents").out.splitlines()
    assert "quarantined" in shown[2]
    assert shown[3] == "two: its disk failed"
    del here.fake.agents["two"]
    assert "one is draining" in here.headrace("drain", "one").out
    assert json.loads(here.headrace("drain", "one", "--undo", "--json").out)["presence"] == "connected"
    assert "it starts nothing" in here.headrace("pools", "pause", "default").out
    assert json.loads(here.headrace("pools", "--json").out)[0]["paused"] is True
    assert "at work" in here.headrace("pools", "resume", "default").out


def test_headrace_alone_shows_its_help_and_no_mistake(world):
    """The first thing that anybody types."""
    done = world().headrace()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: headrace ")


def test_a_port_that_speaks_http_is_named_as_such(world):
    """The port of /metrics is one beside that of gRPC: gRPC's own account of it is for its programmers."""
    here = world()
    http = f"127.0.0.1:{here.fake.http.server_port}"
    done = here.headrace("runs", HEADRACE_URL=http)
    words = "it does not speak gRPC: is it the port of /metrics, or of something else?"
    assert (done.code, done.err) == (3, f"headrace: cannot reach the coordinator at {http}: {words}\n")


def test_init_writes_a_starter_and_never_overwrites(world):
    """A second `init` must not eat an afternoon's work."""
    here = world()
    done = here.headrace("init")
    assert (done.code, "there already" in done.err) == (2, True)
    assert (here.headrace.folder / "headrace.yml").read_text() == PIPELINE
    (here.headrace.folder / "headrace.yml").unlink()
    assert here.headrace("init").code == 0
    assert (here.headrace.folder / "headrace.yml").read_text().startswith("# The pipeline")


def test_help_comes_at_once(world):
    """Under 0.3 s on a quiet machine: nobody should wait for an import. The bound here allows for a busy one."""
    here = world()
    took = []
    for _ in range(3):
        began = time.monotonic()
        assert here.headrace("--help").code == 0
        took.append(time.monotonic() - began)
    assert min(took) < 0.6
