"""Addresses, statuses, words, JSON shapes and the public face of the SDK."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import re
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

import headrace.client
from headrace import errors
from headrace.client import types, wire
from headrace.client.address import addresses
from headrace.client.channel import Connection
from headrace.client.status import error_of
from headrace.v1 import common_pb2, fleet_pb2, run_pb2

ROOT = Path(__file__).parents[3]


def test_the_public_face_is_a_dozen_names_and_stays_so():
    """Whoever adds a name here adds a promise: it is done on purpose, and this list says so."""
    assert headrace.client.__all__ == [
        "Agent", "Artifact", "Attempt", "Client", "Job", "LogRecord", "Pool",
        "RetryPolicy", "Run", "RunChange", "Source", "StepResult", "SyncClient",
    ]  # fmt: skip
    assert all(hasattr(headrace.client, name) for name in headrace.client.__all__)


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_both_clients_can_do_the_same():
    """One set of flows, two drivers: a call that one has and the other lacks is a slip."""
    assert public(headrace.client.Client) == public(headrace.client.SyncClient)


@pytest.mark.parametrize(
    ("url", "target", "tls"),
    [
        ("127.0.0.1:80", "127.0.0.1:80", False),
        ("localhost", "localhost:7433", False),
        ("[::1]:9", "[::1]:9", False),
        ("http://127.0.0.1:80/", "127.0.0.1:80", False),
        ("unix:/run/headrace.sock", "unix:/run/headrace.sock", False),
        ("ci.example.com:443", "ci.example.com:443", True),
        ("https://127.0.0.1:1", "127.0.0.1:1", True),
        ("10.0.0.7", "10.0.0.7:7433", True),
    ],
)
def test_plaintext_goes_to_loopback_alone(url, target, tls):
    """The token must not cross a network in the clear because nobody thought of it."""
    (found,) = addresses(url, insecure=False)
    assert (found.target, found.tls) == (target, tls)


def test_an_insecure_network_has_to_be_allowed_by_name():
    """`http://` to another machine is refused with the mend; with the setting it is done."""
    with pytest.raises(errors.BadInput, match="HEADRACE_INSECURE"):
        addresses("http://10.0.0.7:1", insecure=False)
    assert not addresses("http://10.0.0.7:1", insecure=True)[0].tls


@pytest.mark.parametrize(
    "url", ["", " , ", "ftp://a:1", "a:b:c", "a:0", "a:65536", "a:", "a/b", "u@h:1", ":80", "a:\uff18"]
)
def test_an_address_that_cannot_be_read_is_refused_in_one_sentence(url):
    """A mistyped HEADRACE_URL must say so, not time out."""
    with pytest.raises(errors.BadInput) as caught:
        addresses(url, insecure=False)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=30))
def test_no_text_makes_the_reading_of_an_address_fail_otherwise(text):
    """Whatever stands in the environment: an address or a sentence, never a traceback."""
    with contextlib.suppress(errors.BadInput):
        assert addresses(text, insecure=False)


def test_a_token_with_a_line_break_is_refused_before_it_reaches_a_header():
    """`HEADRACE_TOKEN=$(cat file)` with a stray line break gets one sentence."""
    with pytest.raises(errors.BadInput, match="HEADRACE_TOKEN"):
        headrace.client.SyncClient("127.0.0.1:1", "abc\n")


def test_a_token_is_not_shown_when_a_connection_is_printed():
    """Values end up in logs and tracebacks; the token must not."""
    assert "hidden" not in repr(Connection("127.0.0.1:1", "hidden", rng=random.Random(1)))


class Failed(grpc.RpcError):
    def __init__(self, code, sentence="", *details):
        self._code, self._sentence = code, sentence
        status = status_pb2.Status(code=code.value[0], message=sentence)
        for each in details:
            status.details.add().Pack(each)
        self._status = status.SerializeToString()

    def code(self):
        return self._code

    def details(self):
        return self._sentence

    def trailing_metadata(self):
        return (("grpc-status-details-bin", self._status),)


KNOWN = {
    grpc.StatusCode.INVALID_ARGUMENT: (errors.BadInput, 2),
    grpc.StatusCode.OUT_OF_RANGE: (errors.BadInput, 2),
    grpc.StatusCode.NOT_FOUND: (errors.NotFound, 2),
    grpc.StatusCode.ALREADY_EXISTS: (errors.Conflict, 2),
    grpc.StatusCode.FAILED_PRECONDITION: (errors.Conflict, 2),
    grpc.StatusCode.ABORTED: (errors.Conflict, 2),
    grpc.StatusCode.PERMISSION_DENIED: (errors.NotAllowed, 3),
    grpc.StatusCode.UNAUTHENTICATED: (errors.NotAllowed, 3),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (errors.TooLarge, 2),
    grpc.StatusCode.UNAVAILABLE: (errors.Unreachable, 3),
    grpc.StatusCode.CANCELLED: (errors.Unreachable, 3),
    grpc.StatusCode.DEADLINE_EXCEEDED: (errors.Unreachable, 3),
    grpc.StatusCode.UNIMPLEMENTED: (errors.Unsupported, 3),
    grpc.StatusCode.INTERNAL: (errors.ServerFailed, 3),
    grpc.StatusCode.UNKNOWN: (errors.ServerFailed, 3),
    grpc.StatusCode.DATA_LOSS: (errors.ServerFailed, 3),
}


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_has_its_error_and_its_exit_code(code):
    """The one table between the wire and a person; a code without a row would be a traceback some day."""
    error = error_of(Failed(code, "so it is"), "here:1")
    assert (type(error), error.exit_code) == KNOWN[code]
    assert "so it is" in str(error) or code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.to_json()["error"] == type(error).__name__


def test_mistakes_of_a_pipeline_file_keep_their_positions():
    """`file:line:column: message`, one a line, is what editors and people read."""
    request = error_details_pb2.BadRequest()
    request.field_violations.add(field="headrace.yml:3:5", description="unknown key `stpes`: did you mean `steps`?")
    request.field_violations.add(field="headrace.yml:9:1", description="a cycle: a, b, a")
    error = error_of(Failed(grpc.StatusCode.INVALID_ARGUMENT, "2 mistakes", request), "here:1")
    assert str(error).splitlines() == [
        "headrace.yml:3:5: unknown key `stpes`: did you mean `steps`?",
        "headrace.yml:9:1: a cycle: a, b, a",
    ]


def test_retry_info_makes_an_exhausted_coordinator_a_busy_one():
    """Without it the same status means a limit that waiting does not move."""
    info = error_details_pb2.RetryInfo()
    info.retry_delay.seconds, info.retry_delay.nanos = 2, 500_000_000
    error = error_of(Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", info), "here:1")
    assert isinstance(error, errors.Busy)
    assert error.after == 2.5


@pytest.mark.parametrize(
    ("words", "numbers", "prefix"),
    [
        (types.RunState, common_pb2.RunState, "RUN_STATE_"),
        (types.JobState, common_pb2.JobState, "JOB_STATE_"),
        (types.AttemptState, common_pb2.AttemptState, "ATTEMPT_STATE_"),
        (types.Presence, fleet_pb2.AgentPresence, "AGENT_PRESENCE_"),
    ],
)
def test_the_words_are_those_of_the_wire_in_its_order(words, numbers, prefix):
    """A word for each number: the translation counts on the order."""
    wanted = {number: name.removeprefix(prefix).lower() for name, number in numbers.items() if number}
    assert {number: wire.word(words, number, "x") for number in wanted} == wanted


def test_a_state_or_cause_that_is_newer_than_the_client_is_shown_by_its_number():
    """An old client beside a new coordinator shows what it can, and does not fail."""
    job = wire.job(run_pb2.Job(state=99, cause=77, sentence="of tomorrow"))
    assert (job.state, job.cause, job.ended) == ("state_99", "cause_77", False)


def test_times_are_aware_and_json_says_utc():
    """Milliseconds on the wire, ISO 8601 with Z for people; 0 is `not yet`, null in JSON."""
    run = wire.run(run_pb2.Run(id=3, created_ms=1_700_000_000_123))
    assert run.created_at == datetime(2023, 11, 14, 22, 13, 20, 123000, UTC)
    assert run.to_json()["created_at"] == "2023-11-14T22:13:20.123Z"
    assert run.to_json()["ended_at"] is None
    json.dumps(run.to_json())


def test_a_stage_that_waits_for_a_person_says_what_is_asked_and_who_has_decided():
    """Whoever approves has to see the question, and whose word is there already."""
    asked = run_pb2.Approval(state="asked", sentence="waits for 2 approvals: Ship it?", count=2, expires_ms=1000)
    asked.decisions.add(person="ana", approved=True, comment="fine")
    stage = wire.stage(run_pb2.Stage(index=1, name="release", url="https://x", approval=asked))
    assert stage.approval is not None
    assert (stage.url, stage.approval.asked, stage.approval.count) == ("https://x", True, 2)
    assert stage.approval.decisions == (types.Decision("ana", approved=True, comment="fine"),)
    assert wire.stage(run_pb2.Stage(name="build")).approval is None


def test_a_job_knows_its_cell_its_outputs_and_what_its_tests_said():
    """All that the language lets a job be is there to be shown, also in JSON."""
    attempt = run_pb2.Attempt(tests=common_pb2.TestReport(tests=3, failures=1, duration_ms=1500))
    attempt.tests.failed.add(suite="unit", name="test_a", message="assert 1 == 2", duration_ms=4)
    cell = {"matrix": {"python": "3.12", "slow": None}, "shard": {"index": 2, "total": 3}}
    job = wire.job(
        run_pb2.Job(
            key="unit[python=3.12,shard=2]", name="unit", cell=json.dumps(cell), may_fail=True, due_ms=1000,
            outputs='{"version": "1.2"}', state=common_pb2.JOB_STATE_FAILED, attempts=[attempt],
        )
    )  # fmt: skip
    assert (job.name, job.matrix, job.shard) == ("unit", {"python": "3.12", "slow": None}, types.Shard(2, 3))
    assert (job.outputs, job.warned, job.due_at) == (
        {"version": "1.2"},
        True,
        datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
    )
    assert job.attempts[0].tests == types.TestReport(
        3, 1, 0, 0, 1500, (types.TestFailure("unit", "test_a", "assert 1 == 2", 4, error=False),)
    )
    json.dumps(job.to_json())


@pytest.mark.parametrize("text", ["", "[]", "no json", '{"matrix": null}'])
def test_a_cell_that_this_client_cannot_read_is_no_cell(text):
    """A newer coordinator may say more than this client understands: the job is shown all the same."""
    job = wire.job(run_pb2.Job(key="unit", cell=text, outputs=text))
    assert (job.name, job.matrix, job.shard) == ("unit", {}, None)


def test_a_step_that_was_tried_once_says_so():
    """The wire leaves out what is usual."""
    assert wire.step(common_pb2.StepResult()).tries == 1
    assert wire.step(common_pb2.StepResult(tries=3, allowed=True)).tries == 3


VALUES = [
    types.Run, types.Source, types.Stage, types.Approval, types.Decision, types.Job, types.Shard, types.Attempt,
    types.StepResult, types.TestReport, types.TestFailure, types.RunChange,
    types.LogBytes, types.SectionOpened, types.SectionClosed, types.LogGap, types.LogEnd,
    types.Artifact, types.ArtifactFile, types.Agent, types.Sandbox, types.Pool,
]  # fmt: skip


def documented(name: str) -> list[str]:
    """The fields in the table below a heading of the JSON reference."""
    text = (ROOT / "docs/reference/json.md").read_text()
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/reference/json.md has no section {name}"
    return re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE)


def example(kind: type) -> types.Value:
    blanks = {"str": "", "int": 0, "bool": False, "bytes": b""}
    values = {}
    for each in dataclasses.fields(kind):
        kind_name = str(each.type)
        values[each.name] = blanks.get(kind_name, () if kind_name.startswith("tuple") else None)
        if kind_name.startswith("Mapping"):
            values[each.name] = {}
        if kind_name == "Source":
            values[each.name] = types.Source("", "")
    return kind(**values)


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)
def test_the_json_of_every_value_is_as_documented(kind):
    """Scripts are written against `--json`: the page and the code say the same, field by field, in order."""
    assert list(example(kind).to_json()) == documented(kind.__name__)
