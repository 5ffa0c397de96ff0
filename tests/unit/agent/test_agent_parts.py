"""The agent's pure parts: environments, outcomes, records, settings, the data directory."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import environment, outcome
from agent.environment import BadFile, Files, Places
from agent.keeping import Records
from agent.problems import Cause
from agent.record import Phase, Record
from agent.settings import Settings
from agent.state import Unusable, open_directory
from agent.supervisor.results import StepResult
from headrace.daemon.settings import BadSettings, read
from headrace.v1 import agent_pb2
from headrace.v1 import common_pb2 as pb

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True).filter(lambda n: not n.startswith("HEADRACE_"))
VALUES = st.text(st.characters(exclude_characters="\0\n", exclude_categories=("Cs",)), max_size=50)


@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_what_a_step_writes_line_by_line_is_read_as_it_was_written(wanted: dict[str, str]) -> None:
    """Values hold anything but a line's end: `=`, quotes and `<<` stay as they are."""
    data = "".join(f"{name}={value}\n" for name, value in wanted.items()).encode()
    assert environment.parse_env(data) == wanted


@given(NAMES, st.lists(VALUES.filter(lambda line: line != "END"), max_size=5))
def test_a_block_keeps_its_lines(name: str, lines: list[str]) -> None:
    """A heredoc is the one way to a value of several lines."""
    block = "\n".join([f"{name}<<END", *lines, "END", ""])
    assert environment.parse_output(block.encode()) == {name: "\n".join(lines)}


@given(st.binary(max_size=200))
def test_no_bytes_of_a_job_break_the_parser(data: bytes) -> None:
    """A job is hostile: what it writes is read, or refused in one sentence."""
    with contextlib.suppress(BadFile):
        assert not any(name.startswith("HEADRACE_") for name in environment.parse_env(data))


def test_many_blocks_take_no_more_time_than_as_many_lines() -> None:
    """A hostile step may write 16 MiB of them: time that grows with the square would hold an agent for hours."""
    began = time.process_time()
    assert environment.parse_output(b"a<<E\nE\n" * 30_000) == {"a": ""}
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"no sign\n", "line 1"),
        (b"A=1\n9=2\n", "line 2"),
        (b"A<<END\nx\n", "has no end"),
        (b"HEADRACE_JOB=x\n", "may not set HEADRACE_JOB"),
        (b"A=\xff\n", "not UTF-8"),
    ],
)
def test_a_mistake_in_an_environment_file_is_named_with_its_place(data: bytes, said: str) -> None:
    """The step fails with it: it should say where to look."""
    with pytest.raises(BadFile, match=said):
        environment.parse_env(data)


def test_a_step_overrides_what_was_exported_and_that_the_job_and_that_the_image() -> None:
    """The order of the language page, and our own names above all."""
    own = {"A": "step", "HEADRACE_JOB": "forged", "MATRIX_OS": "forged"}
    spec = pb.JobSpec(job="unit", given_env={"MATRIX_OS": "trixie", "HEADRACE_SHARD": "2"})
    places = Places("/workspace", "/headrace")
    ours = environment.of_job(spec, 2, places, 0)
    base = {"A": "image", "B": "image", "C": "image", "D": "image"}
    job = {"A": "job", "B": "job", "C": "job"} | {"A": "said", "B": "said"}
    found = environment.of_step(base, job, own, ours=ours, say=places.say, files=Files(3))
    assert [found[name] for name in "ABCD"] == ["step", "said", "job", "image"]
    assert (found["HEADRACE_JOB"], found["HEADRACE_ATTEMPT"]) == ("unit", "2")
    assert (found["MATRIX_OS"], found["HEADRACE_SHARD"], found["HEADRACE_SHARDS"]) == ("trixie", "2", "1")
    assert "HEADRACE_FENCING_TOKEN" not in found


def test_each_try_of_a_step_has_files_of_its_own() -> None:
    """What a try that failed wrote is not what the next one says."""
    assert (Files(3).output, Files(3).env) == ("output-3", "env-3")
    assert len({Files(3, n).output for n in range(1, 4)} | {Files(31).output}) == 4


def test_outputs_that_are_too_much_are_refused_with_both_figures() -> None:
    """Whoever meets one of the limits should not meet the other next."""
    one = f"a={'x' * (environment.VALUE_LIMIT + 1)}\n".encode()
    with pytest.raises(BadFile, match=r"has 1,048,577 bytes; .* 1,048,576 bytes, .* 16,777,216"):
        environment.parse_output(one)
    many = [{f"o{n}": "x" * environment.VALUE_LIMIT} for n in range(17)]
    environment.check_together(many[:16])
    with pytest.raises(BadFile, match=r"have 17,825,792 bytes; .* 1,048,576 bytes, .* 16,777,216"):
        environment.check_together(many)


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_has_a_state_and_a_value_on_the_wire(cause: Cause) -> None:
    """A cause without either would end an attempt by a defect of ours instead."""
    ended = outcome.Outcome(cause, "why")
    assert ended.state != pb.ATTEMPT_STATE_PASSED
    assert outcome.from_wire(ended.wire_cause) is cause


def test_the_first_step_that_did_not_pass_decides() -> None:
    """Later ones are skipped, and say nothing of why."""
    steps = [pb.Step(number=n, name=f"s{n}") for n in range(3)]
    results = [
        outcome.step_result(steps[0], StepResult(0, 0, None, None, "", 1, 2)),
        outcome.step_result(steps[1], StepResult(1, None, 9, Cause.OOM, "out of memory", 2, 3)),
        outcome.skipped(steps[2], "`success()` is false"),
    ]
    allowed = pb.StepResult(number=7, cause=pb.CAUSE_STEP_FAILED, allowed=True)
    ended = outcome.of_steps([allowed, *results])
    assert (ended.cause, ended.sentence) == (Cause.OOM, "step 's1': out of memory")
    assert (results[1].HasField("exit_code"), results[1].signal) == (False, 9)


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """A restart knows nothing but this file."""
    report = agent_pb2.Report(id="r", attempt_id=7, token=b"t" * 16, started=agent_pb2.Started(at_ms=5))
    record = Record(
        attempt=7,
        token=b"\xff" * 16,
        attempt_try=2,
        slot=1,
        spec=pb.JobSpec(job="unit", env={"A": "ä"}),
        assigned_boot_ms=9,
        phase=Phase.STEPS,
        facts={"env": {"A": "\udcff"}},
        needs='{"wheel": {}}',
        env={"LATE": "value"},
        steps=[pb.StepResult(number=0, exit_code=0)],
        outputs={"ver": {"version": "1.2"}},
        trying=pb.StepResult(number=1, cause=pb.CAUSE_STEP_FAILED, tries=2),
        again_boot_ms=99,
        timed_out=True,
        cleaning_until_boot_ms=100,
        told=agent_pb2.Ended(outputs=b"{}", log_patterns=["x"]),
        reports={"r": report},
        ended=outcome.Outcome(Cause.CANCELED, "canceled by ana"),
    )
    records = Records(tmp_path, pytest.fail)
    records.write(record, durable=True)
    (tmp_path / "8.json").write_text("{")
    broken: list[str] = []
    assert records.read(lambda file, _: broken.append(file.name)) == [record]
    assert broken == ["8.json"]
    assert (tmp_path / "7.json").stat().st_mode & 0o777 == 0o600


def test_a_record_of_the_version_before_is_read(tmp_path: Path) -> None:
    """An agent is upgraded while jobs run."""
    record = Record(attempt=7, token=b"t", attempt_try=1, slot=0, spec=pb.JobSpec(), assigned_boot_ms=9)
    newer = ("needs", "env", "outputs", "trying", "again_boot_ms", "timed_out", "cleaning_until_boot_ms", "told")
    written = {name: value for name, value in json.loads(record.to_json()).items() if name not in newer}
    assert Record.from_json(json.dumps(written)) == record


def test_a_record_that_a_full_disk_refused_is_written_later(tmp_path: Path) -> None:
    """A job goes on meanwhile, and a restart must know of it what it came to."""
    record = Record(attempt=7, token=b"t", attempt_try=1, slot=0, spec=pb.JobSpec(), assigned_boot_ms=9)
    records = Records(tmp_path / "records", pytest.fail)
    assert not records.keep(record)
    records.pay()
    (tmp_path / "records").mkdir()
    record.phase = Phase.SETTLED
    records.pay()
    assert records.read(lambda *_: None) == [record]
    records.remove(7)
    records.pay()
    assert records.read(lambda *_: None) == []


def test_a_data_directory_keeps_its_id_and_serves_one_process(tmp_path: Path) -> None:
    """The id is what a coordinator and a sweep know the agent by."""
    first = open_directory(tmp_path / "d", run=tmp_path / "run" / "headrace", new_id="one")
    with pytest.raises(Unusable, match="in use by another agent"):
        open_directory(tmp_path / "d", run=tmp_path / "run" / "headrace", new_id="two")
    first.close()
    again = open_directory(tmp_path / "d", run=tmp_path / "run" / "headrace", new_id="three")
    assert again.instance == "one"
    again.close()
    (tmp_path / "d" / "version").write_text("99\n")
    with pytest.raises(Unusable, match="newer agent"):
        open_directory(tmp_path / "d", run=tmp_path / "run" / "headrace", new_id="four")


@pytest.mark.parametrize("folder", ["/proc/x", "/dev/null/x"])
def test_a_data_directory_that_cannot_be_made_is_one_sentence(folder: str) -> None:
    """Also where the kernel calls it not found, as in /proc."""
    with pytest.raises(Unusable, match="name another"):
        open_directory(Path(folder), new_id="0123456789abcdef")


@pytest.mark.parametrize(
    ("address", "extra", "scheme"),
    [
        ("127.0.0.1:1", {}, "plain"),
        ("localhost:1", {}, "plain"),
        ("[::1]:1", {}, "plain"),
        ("build.example.com:1", {}, "tls"),
        ("build.example.com:1", {"insecure": True}, "plain"),
        ("127.0.0.1:1", {"ca_file": "/x"}, "tls"),
    ],
)
def test_plain_text_is_spoken_to_this_machine_alone(address: str, extra: dict[str, object], scheme: str) -> None:
    """The token goes with every call: it must not cross a network in the clear unasked."""
    settings, _ = read(Settings, {"url": address, **extra}, {}, Path("/nonexistent"))
    assert settings.is_secure(address) is (scheme == "tls")


def test_settings_name_each_mistake_and_lists_come_from_one_variable() -> None:
    """One message with all of them: nobody wants to start a daemon five times."""
    good, _ = read(
        Settings,
        {"name": "a"},
        {"HEADRACE_URL": "a:1, b:2", "HEADRACE_LABELS": "arch=arm64,gpu=no", "HEADRACE_TOOL_PATHS": "/a:/b"},
        Path("/nonexistent"),
    )
    assert (good.url, good.labels) == (("a:1", "b:2"), {"arch": "arm64", "gpu": "no"})
    assert good.tool_paths == (Path("/a"), Path("/b"))
    with pytest.raises(BadSettings) as wrong:
        read(Settings, {"url": "http://x"}, {"HEADRACE_SLOT": "3", "HEADRACE_POOL": ""}, Path("/nonexistent"))
    assert "is not HOST:PORT" in str(wrong.value)
    assert "HEADRACE_SLOTS" in str(wrong.value)


@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("SLOTS", "abc", "'abc' will not do: give a whole number from 1 to 1024"),
        ("SLOTS", "0", "'0' will not do: give a whole number from 1 to 1024"),
        ("CPU", "-1", "'-1' will not do: give a number above 0"),
        ("SPOOL_AGENT", "1k", "'1k' will not do: give a whole number of 1048576 or more"),
        ("INSECURE", "maybe", "'maybe' will not do: give true or false"),
        ("LOG_LEVEL", "loud", "'loud' will not do: give one of debug, info, warning, error"),
        ("JOB_ADDRESSES", "here", "'here' is no network: give one as 10.222.0.0/16 is one"),
    ],
)
def test_a_setting_that_cannot_be_read_says_what_to_give_instead(name: str, value: str, mend: str) -> None:
    """A library's "Input should be a valid integer, unable to parse string" is for those who wrote the program."""
    with pytest.raises(BadSettings) as wrong:
        read(Settings, {}, {f"HEADRACE_{name}": value}, Path("/nonexistent"))
    assert str(wrong.value) == f"{name.lower()} (HEADRACE_{name}): {mend}"


@pytest.mark.parametrize(("slots", "limit"), [(2, 256 << 20), (16, 128 << 20), (1024, 2 << 20)])
def test_all_slots_together_keep_to_the_agents_bound_of_logs(slots: int, limit: int) -> None:
    """An agent with many slots must not fill its disk with logs while no coordinator takes them."""
    settings, _ = read(Settings, {"name": "a", "slots": slots}, {}, Path("/nonexistent"))
    assert settings.spool_limit == limit


def test_logs_that_are_handed_in_meanwhile_count_for_nothing(tmp_path):
    """An attempt may end at any moment, and its folder goes: no reason to lose the connection."""
    directory = open_directory(tmp_path / "d", run=tmp_path / "run" / "headrace", new_id="one")
    over = threading.Event()

    def come_and_go():
        while not over.is_set():
            for number in range(20):
                (directory.logs / str(number)).mkdir(parents=True)
            for number in range(20):
                (directory.logs / str(number)).rmdir()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        assert not any(directory.spooled() for _ in range(300))
    finally:
        over.set()
        thread.join()
        directory.close()
