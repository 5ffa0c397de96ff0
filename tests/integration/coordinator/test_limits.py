"""Whoever asks for too much of a coordinator is turned away with a time to come again, and others are served."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import AsyncIterator, Callable
from importlib import metadata
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from headrace.client import Client, RetryPolicy, Source
from headrace.errors import Busy
from headrace.v1 import agent_pb2, agent_pb2_grpc, log_pb2, log_pb2_grpc, run_pb2, run_pb2_grpc
from tests.harness.command_line import git_repository
from tests.harness.waiting import wait_for
from tests.integration.coordinator.processes import Daemon, bearer, client, metric, token

pytestmark = pytest.mark.timeout(180)

Make = Callable[..., Daemon]
PIPELINE = b"name: p\nstages: [{name: s, jobs: {j: {steps: [{run: 'true'}]}}}]\n"
IMPATIENT = RetryPolicy(patience=0.0, patience_at_first=0.0)


def source(project: str) -> Source:
    url = f"https://git.example/{project}.git"
    return Source(repository=url, url=url, commit="0123456789abcdef0123456789abcdef01234567", branch="main")


def people(of: Daemon, retry: RetryPolicy | None = None) -> Client:
    return Client(of.facts["address"], token(of, "client"), policy=retry)


def retry_info(error: grpc.RpcError) -> float:
    """Seconds that an error asks to wait."""
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return info.retry_delay.ToTimedelta().total_seconds()


def hello(number: int) -> agent_pb2.SessionRequest:
    return agent_pb2.SessionRequest(
        hello=agent_pb2.Hello(
            name=f"a{number}",
            instance_id=f"instance-{number}",
            version=metadata.version("headrace"),
            pool="default",
            slots=1,
            credit=1,
        )
    )


def test_agents_beyond_the_rate_are_sent_away_for_a_while_and_all_are_connected_in_the_end(
    make_coordinator: Make, make_agent: Make
) -> None:
    """A fleet that comes back at once must not keep the database from the heartbeats of those that are there."""
    of = make_coordinator(HEADRACE_HELLOS_PER_S="1", HEADRACE_HELLOS_BURST="4")
    of.start()

    async def first_words(number: int) -> agent_pb2.SessionResponse:
        async with grpc.aio.insecure_channel(of.facts["address"]) as channel:
            stream = agent_pb2_grpc.AgentServiceStub(channel).Session(metadata=bearer(token(of, "agent")))
            await stream.write(hello(number))
            answer = await stream.read()
            assert isinstance(answer, agent_pb2.SessionResponse)
            stream.cancel()
            return answer

    async def all_first_words() -> list[agent_pb2.SessionResponse]:
        return await asyncio.gather(*(first_words(number) for number in range(12)))

    said = asyncio.run(all_first_words())
    away = sorted(each.go_away.retry_after_ms for each in said if each.HasField("go_away"))
    assert sum(each.HasField("welcome") for each in said) + len(away) == 12
    assert 8 <= len(away) <= 10
    assert all(later - wait >= 500 for wait, later in itertools.pairwise(away)), away
    assert metric(of, 'headrace_turned_away_total{what="hello"}') == len(away)
    agents = [make_agent(of, f"real-{number}") for number in range(2)]
    for each in agents:
        each.start()
    wait_for(lambda: metric(of, "headrace_sessions") == 2, "both agents connect")


def test_a_loop_that_creates_runs_is_held_and_other_projects_go_on(make_coordinator: Make, tmp_path: Path) -> None:
    """With RESOURCE_EXHAUSTED and a time; the client library waits for it, and a person reads one sentence."""
    of = make_coordinator(HEADRACE_PROJECT_CHANGES_PER_S="0.001", HEADRACE_PROJECT_CHANGES_BURST="3")
    of.start()

    async def main() -> None:
        async with people(of, IMPATIENT) as impatient:
            made = [await impatient.create_run(source("loop"), PIPELINE) for _ in range(3)]
            with pytest.raises(Busy, match="changes of this project a second") as busy:
                await impatient.create_run(source("loop"), PIPELINE)
            assert 900 < busy.value.after <= 1000
            await impatient.create_run(source("other"), PIPELINE)
            for _ in range(3):
                await impatient.cancel(made[0].id)
            with pytest.raises(Busy, match="changes of this run a second"):
                await impatient.cancel(made[0].id)
            await impatient.cancel(made[1].id)
        request = run_pb2.CreateRunRequest(request_id="r" * 16, source=run_pb2.CreateRunRequest().source)
        request.source.repository = source("loop").repository
        async with grpc.aio.insecure_channel(of.facts["address"]) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await run_pb2_grpc.RunServiceStub(channel).Create(request, metadata=bearer(token(of, "client")))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert retry_info(refused.value) > 900

    asyncio.run(main())
    assert metric(of, 'headrace_turned_away_total{what="call"}') == 3
    git_repository(tmp_path / "repository", {"headrace.yml": PIPELINE.decode()})
    person = client(of, tmp_path / "repository", tmp_path / "state")
    for _ in range(3):
        assert person("cancel", "4").code == 0
    said = person("cancel", "4")
    assert (said.code, said.out) == (3, "")
    assert said.err.startswith("headrace: there were more than 0.001 changes of this run a second"), said.err
    assert said.err.count("\n") == 1


def test_a_project_with_its_bound_under_way_gets_no_run_more_and_others_do(make_coordinator: Make) -> None:
    """A loop that creates runs as slowly as the rate allows would fill the disk in the end."""
    of = make_coordinator(HEADRACE_PROJECT_RUNS_MOST="2", HEADRACE_PROJECT_JOBS_MOST="3")
    of.start()
    three = PIPELINE.replace(b"j:", b"j: &j").replace(b"}}}]", b"}, k: *j, l: *j}}]")

    async def main() -> None:
        async with people(of, IMPATIENT) as person:

            async def refused(project: str, words: str) -> None:
                with pytest.raises(Busy, match=f"{words} of this project have not ended") as busy:
                    await person.create_run(source(project), PIPELINE)
                assert busy.value.after == 10

            first, second = [(await person.create_run(source("many"), PIPELINE)).id for _ in range(2)]
            await refused("many", "2 runs")
            await person.create_run(source("broad"), three)
            await refused("broad", "3 jobs")
            await person.cancel(first)
            await person.create_run(source("many"), PIPELINE)
            with pytest.raises(Busy, match="2 runs of this project have not ended"):
                await person.retry(first)
            await person.cancel(second)
            await person.retry(first)

    asyncio.run(main())
    assert metric(of, 'headrace_turned_away_total{what="room"}') == 3


def test_the_client_library_waits_as_it_is_told_and_loses_nothing(make_coordinator: Make) -> None:
    """Whoever has a script that creates many runs gets them all, at the rate."""
    of = make_coordinator(HEADRACE_PROJECT_CHANGES_PER_S="4", HEADRACE_PROJECT_CHANGES_BURST="2")
    of.start()

    async def main() -> float:
        async with people(of) as patient:
            began = time.monotonic()
            made = await asyncio.gather(*(patient.create_run(source("many"), PIPELINE) for _ in range(8)))
            assert len({run.id for run in made}) == 8
            return time.monotonic() - began

    assert asyncio.run(main()) >= 6 / 4


def test_watches_beyond_the_bound_are_refused_and_a_place_that_becomes_free_is_given(make_coordinator: Make) -> None:
    """Each costs memory and a look into the database for as long as it is open."""
    of = make_coordinator(HEADRACE_STREAMS_MOST="2")
    of.start()

    async def main() -> None:
        async with people(of) as person, grpc.aio.insecure_channel(of.facts["address"]) as channel:
            run = (await person.create_run(source("watched"), PIPELINE)).id
            shown = bearer(token(of, "client"))

            def watch() -> grpc.aio.UnaryStreamCall:
                return run_pb2_grpc.RunServiceStub(channel).Watch(run_pb2.WatchRunRequest(run_id=run), metadata=shown)

            def tail() -> grpc.aio.UnaryStreamCall:
                ask = log_pb2.TailRequest(run_id=run, job="j", follow=True)
                return log_pb2_grpc.LogServiceStub(channel).Tail(ask, metadata=shown)

            first = watch()
            await first.read()
            second = tail()
            second_reads = asyncio.ensure_future(second.read())
            third: grpc.aio.AioRpcError | None = None
            while third is None:
                try:
                    call = watch()
                    await call.read()
                    call.cancel()
                except grpc.aio.AioRpcError as error:
                    third = error
            assert third.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "are being watched under this token" in str(third.details())
            assert retry_info(third) == 5
            first.cancel()
            async with asyncio.timeout(20):
                while True:
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        await watch().read()
                        break
            second.cancel()
            await asyncio.wait([second_reads])

    asyncio.run(main())


def closed_after(address: str, first: bytes) -> float:
    """Seconds until the other side closes a connection that says no more than this."""
    host, _, port = address.rpartition(":")
    began = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(first)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(4096):
                pass
    return time.monotonic() - began


def test_connections_and_calls_that_say_nothing_are_closed(make_coordinator: Make) -> None:
    """Thousands of them would hold descriptors and memory for as long as their other side likes."""
    of = make_coordinator()
    of.start()
    half = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-"

    async def silent(method: str, shown: object) -> tuple[grpc.StatusCode, float]:
        async def says_nothing() -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

        began = time.monotonic()
        async with grpc.aio.insecure_channel(of.facts["address"]) as channel:
            call = channel.stream_stream(method)(says_nothing(), metadata=shown, timeout=60)
            with pytest.raises(grpc.aio.AioRpcError) as over:
                await call.read()
            return over.value.code(), time.monotonic() - began

    async def main() -> None:
        connections = [
            asyncio.to_thread(closed_after, of.facts[where], first)
            for where in ("address", "http", "blobs")
            for first in ((b"",) if where == "address" else (b"", half))
        ]
        session = silent("/headrace.v1.AgentService/Session", bearer(token(of, "agent")))
        stranger = silent("/headrace.v1.RunService/List", bearer("wrong"))
        *took, hello_less, refused = await asyncio.gather(*connections, session, stranger)
        assert all(5 < each < 30 for each in took), took
        assert hello_less[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 8 < hello_less[1] < 30
        assert refused[0] is grpc.StatusCode.UNAUTHENTICATED
        assert refused[1] < 8

    asyncio.run(main())
