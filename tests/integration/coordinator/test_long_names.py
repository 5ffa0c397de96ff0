"""What is looked up by an index has a bound that is said, not one that the database finds."""

from __future__ import annotations

import random

import grpc

from headrace.v1 import common_pb2, run_pb2, run_pb2_grpc
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import bearer, token

PIPELINE = "name: n\nstages: [{{name: a, jobs: {{j: {{requires: {{{0}}}, steps: [{{run: 'true'}}]}}}}}}]\n"


def test_an_address_or_a_label_too_long_to_be_looked_up_is_refused_in_a_sentence(make_coordinator: Make) -> None:
    """An index entry over a third of a page is an error of the database, which would look like a mistake of ours."""
    daemon = make_coordinator()
    daemon.start()
    long = random.Random(1).randbytes(3_000).hex()  # text that compresses would still fit

    def refusal(repository: str, labels: int) -> tuple[grpc.StatusCode, str]:
        source = common_pb2.Source(repository=repository, commit="0" * 40, url="https://example.org/r")
        text = PIPELINE.format(", ".join(f"l{n}: '{long[n * 200 :][:200]}'" for n in range(labels))).encode()
        request = run_pb2.CreateRunRequest(request_id="a" * 8, source=source, pipeline_text=text)
        with grpc.insecure_channel(daemon.facts["address"]) as channel:
            try:
                run_pb2_grpc.RunServiceStub(channel).Create(request, metadata=bearer(token(daemon, "client")))
            except grpc.RpcError as error:
                return error.code(), str(error.details())
        return grpc.StatusCode.OK, ""

    for code, sentence in (refusal(long, 1), refusal("r", 25)):
        assert code is grpc.StatusCode.INVALID_ARGUMENT, sentence
        assert "more than 1,024 bytes" in sentence
    assert refusal(long[:1_024], 5) == (grpc.StatusCode.OK, "")
