"""The door of the gRPC server: every method has a rule, and nobody passes without the right token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from coordinator.api.access import ANYONE, RULES, Caller
from headrace.v1 import agent_pb2, blob_pb2, common_pb2, fleet_pb2, log_pb2, run_pb2, run_pb2_grpc
from tests.integration.coordinator.processes import Daemon, Metadata, bearer, coordinator, none_left, token

pytestmark = pytest.mark.timeout(120)

OURS = (agent_pb2, blob_pb2, common_pb2, fleet_pb2, log_pb2, run_pb2)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = coordinator(tmp_path_factory.mktemp("door") / "c")
    daemon.start()
    yield daemon
    daemon.end()
    assert none_left(daemon.folder, 10) == []


@pytest.fixture
def channel(running: Daemon) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(running.facts["address"]) as found:
        yield found


def call(channel: grpc.Channel, method: str, metadata: Metadata) -> grpc.StatusCode:
    """Calls any method with one empty message; on the wire all kinds begin alike. Returns how it ended or began."""
    begin: Any = channel.stream_stream(method)
    stream = begin(iter([b""]), metadata=metadata, timeout=20)
    try:
        next(stream, None)
    except grpc.RpcError as error:
        return error.code()
    finally:
        stream.cancel()
    return grpc.StatusCode.OK


def reflected(
    channel: grpc.Channel, client_token: str, *requests: reflection_pb2.ServerReflectionRequest
) -> list[reflection_pb2.ServerReflectionResponse]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    return list(stub.ServerReflectionInfo(iter(requests), metadata=bearer(client_token), timeout=20))


def served_methods(channel: grpc.Channel, client_token: str) -> set[str]:
    """Every method of the running server, as its reflection tells it."""
    ask = reflection_pb2.ServerReflectionRequest
    (listed,) = reflected(channel, client_token, ask(list_services=""))
    names = [service.name for service in listed.list_services_response.service]
    methods = set()
    for name, answer in zip(
        names, reflected(channel, client_token, *(ask(file_containing_symbol=name) for name in names)), strict=True
    ):
        for raw in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(raw)
            for service in file.service:
                if f"{file.package}.{service.name}" == name:
                    methods |= {f"/{name}/{method.name}" for method in service.method}
    return methods


def test_every_method_that_is_served_has_a_rule_and_every_rule_a_method(running: Daemon, channel: grpc.Channel) -> None:
    """A method that is added without a decision who may call it must not slip through review."""
    assert served_methods(channel, token(running, "client")) == set(RULES)


def test_only_health_is_anyones() -> None:
    """Whatever else is opened to callers without a credential has to be written down here too."""
    open_to_all = {method for method, callers in RULES.items() if None in callers}
    assert open_to_all == {f"/grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch")}


def test_every_service_of_the_contract_is_served(running: Daemon, channel: grpc.Channel) -> None:
    """The stubs and the server are made from one contract: what stands in a .proto answers."""
    written = {
        f"/{service.full_name}/{method.name}"
        for module in OURS
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert written <= served_methods(channel, token(running, "client"))


@pytest.mark.parametrize("method", [name for name, callers in RULES.items() if callers is not ANYONE])
def test_a_method_refuses_whoever_has_not_the_right_token(running: Daemon, channel: grpc.Channel, method: str) -> None:
    """No token, a wrong one, another caller's, one in another scheme: UNAUTHENTICATED, before a servicer sees it."""
    others = {caller for caller in Caller if caller not in RULES[method]}
    right = token(running, next(str(caller) for caller in Caller if caller in RULES[method]))
    wrong: list[Metadata] = [
        (),
        bearer("wrong"),
        bearer(""),
        bearer(right[:-1]),
        (("authorization", right),),
        *(bearer(token(running, caller)) for caller in others),
    ]
    assert {call(channel, method, metadata) for metadata in wrong} == {grpc.StatusCode.UNAUTHENTICATED}
    assert call(channel, method, bearer(right)) is not grpc.StatusCode.UNAUTHENTICATED


def test_a_method_that_does_not_exist_is_refused_like_a_forbidden_one(running: Daemon, channel: grpc.Channel) -> None:
    """Deny by default: what has no rule is nobody's, whatever token is shown."""
    for metadata in ((), bearer(token(running, "client"))):
        assert call(channel, "/headrace.v1.RunService/Destroy", metadata) is grpc.StatusCode.UNAUTHENTICATED


def test_the_refusal_is_a_sentence_that_says_how_to_mend_it(running: Daemon, channel: grpc.Channel) -> None:
    """A person with the wrong token reads it, and the token itself is not repeated."""
    with pytest.raises(grpc.RpcError) as refused:
        run_pb2_grpc.RunServiceStub(channel).List(run_pb2.ListRunsRequest(), metadata=bearer("sesame"))
    sentence = str(refused.value.details())
    assert "HEADRACE_TOKEN" in sentence
    assert "sesame" not in sentence + running.said


def test_health_is_told_to_anyone(channel: grpc.Channel) -> None:
    """A load balancer has no token."""
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_message_over_the_limit_is_refused_and_the_coordinator_lives(running: Daemon, channel: grpc.Channel) -> None:
    """20 MiB is the bound of a message; whoever sends more gets a status, and others are served on."""
    create: Any = channel.unary_unary("/headrace.v1.RunService/Create")  # bytes as they are: no stub would send them
    with pytest.raises(grpc.RpcError) as refused:
        create(bytes(21 << 20), metadata=bearer(token(running, "client")))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call(channel, "/headrace.v1.RunService/List", bearer(token(running, "client"))) is grpc.StatusCode.OK


def test_tokens_are_readable_by_their_owner_alone(running: Daemon) -> None:
    """A job on the same machine must not read what makes it an agent."""
    files: list[Path] = [*(running.folder / "tokens").iterdir(), *(running.folder / "secrets").iterdir()]
    assert files
    assert {file.stat().st_mode & 0o777 for file in (*files, running.folder / "postgres/password")} == {0o600}
    assert running.folder.stat().st_mode & 0o777 == 0o700
