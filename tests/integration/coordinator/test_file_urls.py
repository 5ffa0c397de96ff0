"""A run names no place of a machine that its client is not on."""

from __future__ import annotations

import grpc
import pytest

from headrace.v1 import common_pb2, run_pb2, run_pb2_grpc
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import bearer, token


def test_a_file_url_is_refused_like_a_path(make_coordinator: Make) -> None:
    """It is a path by another name, and an agent that is root can read them all."""
    daemon = make_coordinator()
    daemon.start()
    source = common_pb2.Source(repository="r", commit="0" * 40, url="File:///srv/secret.git")
    text = b"name: n\nstages: [{name: a, jobs: {j: {steps: [{run: 'true'}]}}}]\n"
    request = run_pb2.CreateRunRequest(request_id="a" * 8, source=source, pipeline_text=text)
    with (
        grpc.insecure_channel(daemon.facts["address"]) as channel,
        pytest.raises(grpc.RpcError, match="a path can only be built by a coordinator on the same machine"),
    ):
        run_pb2_grpc.RunServiceStub(channel).Create(request, metadata=bearer(token(daemon, "client")))
