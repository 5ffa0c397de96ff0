"""Both clients against a fake coordinator over real gRPC and HTTP connections, with faults on the way."""

from __future__ import annotations

import hashlib
import random
import threading

import grpc
import pytest
from google.rpc import error_details_pb2

from headrace import errors
from headrace.client import RetryPolicy, Source, SyncClient
from headrace.client.types import LogBytes, LogEnd, Presence, RunState
from headrace.v1 import common_pb2, fleet_pb2, run_pb2
from tests.harness.both_clients import Blocking
from tests.harness.fake_coordinator import TOKEN, FakeCoordinator
from tests.harness.faults import Fault, bad_request

SOURCE = Source(repository="/src/demo", commit="a" * 40, path="/src/demo")
QUICK = RetryPolicy(first=0.01, most=0.05, patience=20)


@pytest.fixture
def fake():
    with FakeCoordinator() as fake:
        yield fake


@pytest.fixture(params=[SyncClient, Blocking], ids=["blocking", "asyncio"])
def make(request):
    return lambda address, token=TOKEN, policy=QUICK: request.param(address, token, policy=policy, rng=random.Random(1))


@pytest.fixture
def client(fake, make):
    with make(fake.address) as client:
        yield client


def test_a_run_whose_answer_was_lost_is_created_once(fake, client):
    """The client made the request id: the same request again is the same run."""
    fake.faults["Create"] += [Fault(done_all_the_same=True), Fault()]
    run = client.create_run(SOURCE, b"stages: []", parameters={"target": "staging"})
    first, *again = fake.requests("Create")
    assert len(again) == 2
    assert all(each == first for each in again)
    assert first.request_id
    assert (run.id, run.state, dict(run.parameters)) == (1, RunState.PENDING, {"target": "staging"})
    assert len(fake.runs) == 1
    assert run.source == SOURCE


def test_two_runs_get_two_request_ids(fake, client):
    """A request id that repeats would swallow the second run."""
    assert client.create_run(SOURCE, b"").id != client.create_run(SOURCE, b"").id


def test_what_a_pipeline_includes_goes_with_it(fake, client):
    """The coordinator has no checkout: the files come from whoever read the tree."""
    client.create_run(SOURCE, b"", included={"ci/shared.yml": b"templates: {}"})
    assert dict(fake.requests("Create")[0].included) == {"ci/shared.yml": b"templates: {}"}


def test_a_decision_is_made_once_and_comes_back_with_the_run(fake, client):
    """One person counts once: the request id is kept over every try."""
    client.create_run(SOURCE, b"")
    fake.runs[1].stages.add(index=0, name="release")
    fake.ask(1, "release")
    fake.faults["Approve"].append(Fault())
    run = client.approve(1, "release", comment="ship it")
    first, again = fake.requests("Approve")
    assert first == again
    assert (first.stage, first.reject, first.comment) == ("release", False, "ship it")
    assert run.stages[0].approval.decisions[0].comment == "ship it"
    with pytest.raises(errors.Conflict, match="waits for no approval"):
        client.approve(1, reject=True)


def test_a_wrong_token_is_said_at_once(fake, make):
    """Trying again does not mend a token."""
    with make(fake.address, token="wrong") as client, pytest.raises(errors.NotAllowed, match="token"):
        client.runs()
    assert len(fake.seen) == 1


def test_nobody_at_the_address_is_said_with_the_address(make):
    """Within the patience for a first answer, naming what was tried."""
    policy = RetryPolicy(first=0.01, most=0.05, patience_at_first=0.3)
    with make("127.0.0.1:1", policy=policy) as client, pytest.raises(errors.Unreachable) as caught:
        client.runs()
    assert "127.0.0.1:1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_address_is_asked_when_the_first_does_not_answer(fake, make):
    """HEADRACE_URL may name several replicas; any of them will do."""
    with make(f"127.0.0.1:1,{fake.address}") as client:
        assert client.runs() == []
        assert client.runs() == []


def test_a_coordinator_that_restarts_is_waited_for(fake, make):
    """A client that was answered once is patient: an upgrade must not fail everybody's `headrace run`."""
    with FakeCoordinator() as first:
        address, port = first.address, int(first.address.rpartition(":")[2])
        client = make(address)
        client.runs()
    second = FakeCoordinator(port=port)
    starter = threading.Timer(0.5, second.__enter__)
    starter.start()
    try:
        assert client.runs() == []
    finally:
        starter.join()
        client.__exit__(None, None, None)
        second.__exit__(None, None, None)


def test_mistakes_of_a_pipeline_come_with_their_positions(fake, client):
    """What the coordinator found reaches the caller whole."""
    details = (bad_request(("headrace.yml:3:5", "unknown key `stpes`"), ("headrace.yml:9:1", "a cycle")),)
    fake.faults["Create"].append(Fault(grpc.StatusCode.INVALID_ARGUMENT, "2 mistakes", details=details))
    with pytest.raises(errors.BadInput) as caught:
        client.create_run(SOURCE, b"x")
    assert [str(each) for each in caught.value.violations] == [
        "headrace.yml:3:5: unknown key `stpes`",
        "headrace.yml:9:1: a cycle",
    ]


def test_a_busy_coordinator_is_asked_again_after_the_time_it_names(fake, client):
    """RESOURCE_EXHAUSTED with RetryInfo is for later; without, it is a limit."""
    info = error_details_pb2.RetryInfo()
    info.retry_delay.nanos = 10_000_000
    fake.faults["List"].append(Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", details=(info,)))
    assert client.runs() == []
    fake.faults["List"].append(Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "at most 200"))
    with pytest.raises(errors.TooLarge, match="at most 200"):
        client.runs()


def test_a_message_over_the_size_limit_is_one_sentence(client):
    """It is refused before it is sent, with both figures, in our words and not in gRPC's."""
    with pytest.raises(errors.TooLarge, match=r"17\.0 MiB, and 16 MiB are the limit: make") as caught:
        client.create_run(SOURCE, b"#" * (17 << 20))
    assert "\n" not in str(caught.value)


def test_runs_are_shown_and_listed(fake, client):
    """By number, the newest of a repository, page by page."""
    for _ in range(3):
        client.create_run(SOURCE, b"")
    assert client.run(2).id == 2
    assert client.run(repository="/src/demo").id == 3
    assert [run.id for run in client.runs(before=3, limit=1)] == [2]
    assert client.runs(repository="/src/other") == []
    with pytest.raises(errors.NotFound, match="no run 9"):
        client.run(9)


def test_a_watch_goes_on_behind_the_last_change_after_each_cut(fake, client):
    """Snapshot first, then every change once and in order, over three connections."""
    run = client.create_run(SOURCE, b"")
    fake.faults["Watch"] += [Fault(after_messages=2), Fault(), Fault(after_messages=1)]
    fake.set_job(run.id, "unit", state=common_pb2.JOB_STATE_QUEUED)
    changes = client.watch(run.id)
    found = [next(changes)]
    assert [job.key for job in found[0].snapshot.jobs] == ["unit"]
    fake.set_run(run.id, state=common_pb2.RUN_STATE_RUNNING)
    fake.set_job(run.id, "unit", state=common_pb2.JOB_STATE_RUNNING)
    fake.set_job(run.id, "unit", state=common_pb2.JOB_STATE_PASSED)
    fake.set_run(run.id, state=common_pb2.RUN_STATE_PASSED)
    found += list(changes)
    assert [change.sequence for change in found] == [2, 3, 4, 5, 6]
    assert found[-1].run.state == RunState.PASSED
    assert [request.after for request in fake.requests("Watch")] == [0, 3, 3, 4]


def test_a_log_is_tailed_whole_over_cuts_and_from_any_offset(fake, client):
    """Every byte once, in order; binary bytes too."""
    run = client.create_run(SOURCE, b"")
    chunks = [bytes([number]) * 1000 + b"\n\xff" for number in range(20)]
    for chunk in chunks:
        fake.write(run.id, "unit", chunk)
    fake.seal(run.id, "unit")
    whole = b"".join(chunks)
    for offset in (0, 1500, len(whole)):
        fake.faults["Tail"] += [Fault(after_messages=3), Fault(), Fault(after_messages=7)]
        records = list(client.tail(run.id, "unit", offset=offset))
        assert b"".join(each.data for each in records if isinstance(each, LogBytes)) == whole[offset:]
        assert records[-1] == LogEnd(1, len(whole), complete=True)
        fake.faults["Tail"].clear()


def test_a_followed_log_is_live_and_an_unfollowed_one_ends_at_what_is_there(fake, client):
    """`-f` waits for more; without it the answer comes at once and says that it is not complete."""
    run = client.create_run(SOURCE, b"")
    fake.write(run.id, "unit", b"one\n")
    assert list(client.tail(run.id, "unit", follow=False))[-1] == LogEnd(1, 4, complete=False)
    records = client.tail(run.id, "unit")
    assert next(records).data == b"one\n"
    fake.write(run.id, "unit", b"two\n")
    assert next(records).data == b"two\n"
    fake.seal(run.id, "unit")
    assert next(records) == LogEnd(1, 8, complete=True)


def test_a_tail_that_is_dropped_ends_its_call(fake, client):
    """Whoever stops reading must not leave a stream open at the coordinator."""
    run = client.create_run(SOURCE, b"")
    fake.write(run.id, "unit", b"one\n")
    records = client.tail(run.id, "unit")
    next(records)
    records.close()
    assert client.runs(), "the connection is still good"


def test_cancel_and_retry_carry_a_request_id_each(fake, client):
    """A second cancel is another request: it kills."""
    run = client.create_run(SOURCE, b"")
    client.cancel(run.id, reason="by hand")
    client.cancel(run.id)
    client.retry(run.id)
    ids = [each.request_id for each in fake.requests("Cancel") + fake.requests("Retry")]
    assert len(set(ids)) == 3
    assert all(ids)
    with pytest.raises(errors.NotFound, match="no job lint"):
        client.retry(run.id, job="lint")


def test_an_artifact_is_downloaded_below_a_folder(fake, client, tmp_path):
    """Each file by its signed request, checked; nothing else is left in the folder."""
    run = client.create_run(SOURCE, b"")
    fake.keep(run.id, "dist", {"dist/a.whl": b"wheel" * 1000, "empty": b""})
    (artifact,) = client.artifacts(run.id)
    assert (artifact.name, artifact.size, len(artifact.files)) == ("dist", 5000, 2)
    paths = client.download(run.id, "dist", tmp_path)
    assert {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in paths} == {
        "dist/a.whl": b"wheel" * 1000,
        "empty": b"",
    }
    assert sorted(each.name for each in tmp_path.rglob("*") if each.is_file()) == ["a.whl", "empty"]


def test_a_signature_that_has_expired_is_renewed(fake, client, tmp_path):
    """The store answers 403; the client asks for another signature and goes on."""
    run = client.create_run(SOURCE, b"")
    fake.keep(run.id, "dist", {"a": b"data"})
    fake.expired |= {1, 2}
    (path,) = client.download(run.id, "dist", tmp_path)
    assert path.read_bytes() == b"data"
    assert len(fake.requests("DownloadArtifact")) == 3


@pytest.mark.parametrize("stored", [b"datA", b"data and more"])
def test_a_damaged_file_is_refused_and_leaves_nothing(fake, client, tmp_path, stored):
    """Digest and length are checked here too; half a file under its name would be taken for whole."""
    run = client.create_run(SOURCE, b"")
    fake.keep(run.id, "dist", {"a": b"data"})
    fake.blobs[hashlib.sha256(b"data").hexdigest()] = stored
    with pytest.raises(errors.Corrupt):
        client.download(run.id, "dist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_store_has_lost_is_not_found(fake, client, tmp_path):
    """A 404 is an answer: nobody tries for two minutes."""
    run = client.create_run(SOURCE, b"")
    fake.keep(run.id, "dist", {"a": b"data"})
    fake.blobs.clear()
    with pytest.raises(errors.NotFound):
        client.download(run.id, "dist", tmp_path)


def test_a_bundle_is_handed_in_once(fake, client, tmp_path):
    """By its digest: what is there already is not sent again."""
    bundle = tmp_path / "source.bundle"
    bundle.write_bytes(b"bundle" * 500_000)
    fake.expired.add(1)
    digest = client.send_bundle(bundle)
    assert fake.blobs[digest] == bundle.read_bytes()
    fake.blobs[digest] = b"kept"
    assert client.send_bundle(bundle) == digest
    assert fake.blobs[digest] == b"kept"


def test_the_fleet_is_shown_drained_and_paused(fake, client):
    """Agents and pools as values; drain and pause can be undone."""
    fake.agents["one"] = fleet_pb2.Agent(
        name="one", pool="default", labels={"arch": "arm64"}, slots=2, presence=fleet_pb2.AGENT_PRESENCE_CONNECTED
    )
    (agent,) = client.agents()
    assert (agent.presence, agent.labels) == (Presence.CONNECTED, {"arch": "arm64"})
    assert client.drain("one").presence == Presence.DRAINING
    assert client.drain("one", undo=True).presence == Presence.CONNECTED
    assert client.pause("default").paused
    assert not client.pause("default", undo=True).paused
    assert [pool.name for pool in client.pools()] == ["default"]
    with pytest.raises(errors.NotFound):
        client.drain("two")


def test_a_call_that_this_coordinator_does_not_know_says_so(fake, client):
    """A newer client beside an older coordinator gets a sentence."""
    fake.faults["ListAgents"].append(Fault(grpc.StatusCode.UNIMPLEMENTED, "no such method"))
    with pytest.raises(errors.Unsupported):
        client.agents()


def test_what_a_newer_coordinator_sends_is_passed_over(fake, client):
    """A kind of change without a meaning here still counts: the resume number moves on."""
    run = client.create_run(SOURCE, b"")
    fake.changes[run.id].append(run_pb2.RunChange(sequence=2))
    fake.runs[run.id].sequence = 2
    fake.set_run(run.id, state=common_pb2.RUN_STATE_FAILED)
    assert [change.sequence for change in client.watch(run.id, after=1)] == [2, 3]
