"""What the fake coordinator serves beside runs: logs, artifacts, the fleet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import grpc

from headrace.v1 import blob_pb2, blob_pb2_grpc, fleet_pb2, fleet_pb2_grpc, log_pb2, log_pb2_grpc
from tests.harness.faults import refuse

if TYPE_CHECKING:
    from tests.harness.fake_coordinator import FakeCoordinator


class Logs(log_pb2_grpc.LogServiceServicer):
    def __init__(self, fake: FakeCoordinator) -> None:
        self.fake = fake

    def Tail(self, request, context) -> Iterator[log_pb2.TailResponse]:  # noqa: N802
        fault = self.fake.admit("Tail", request, context)
        tries = [n for run, job, n in self.fake.logs if (run, job) == (request.run_id, request.job)]
        number = getattr(request, "try") or max(tries, default=1)
        log, sent, at = self.fake.logs[request.run_id, request.job, number], 0, 0
        while not self.fake.stopped and context.is_active():
            with self.fake.moved:
                records = log.records[at:]
                over = log.complete or not request.follow
                if not records and not over:
                    self.fake.moved.wait(1)
            at += len(records)
            for record in records:
                if record.offset + record.frame.raw_length <= request.offset and request.offset:
                    continue
                if fault is not None and sent == fault.after_messages:
                    refuse(context, fault)
                yield log_pb2.TailResponse(record=record, **{"try": number})
                sent += 1
            if over and at == len(log.records):
                if fault is not None:
                    refuse(context, fault)
                end = log_pb2.TailEnd(offset=log.offset, complete=log.complete)
                yield log_pb2.TailResponse(end=end, **{"try": number})
                return


class Blobs(blob_pb2_grpc.BlobServiceServicer):
    def __init__(self, fake: FakeCoordinator) -> None:
        self.fake = fake

    def ListArtifacts(self, request, context):  # noqa: N802
        self.fake.admit("ListArtifacts", request, context)
        return blob_pb2.ListArtifactsResponse(artifacts=self.fake.artifacts[request.run_id].values())

    def DownloadArtifact(self, request, context):  # noqa: N802
        self.fake.admit("DownloadArtifact", request, context)
        found = self.fake.artifacts[request.run_id].get(request.name)
        if found is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"run {request.run_id} has no artifact {request.name}")
        if found.expired:
            context.abort(grpc.StatusCode.NOT_FOUND, f"artifact {request.name} of run {request.run_id} has expired")
        return blob_pb2.DownloadArtifactResponse(
            artifact=found, transfers=[self.fake.transfer(each.sha256, each.size, "GET") for each in found.files]
        )

    def PrepareBundle(self, request, context):  # noqa: N802
        self.fake.admit("PrepareBundle", request, context)
        bundle = request.bundle
        transfer = self.fake.transfer(bundle.sha256, bundle.size, "PUT")
        transfer.present = bundle.sha256 in self.fake.blobs
        return blob_pb2.PrepareBundleResponse(transfer=transfer)


class Fleet(fleet_pb2_grpc.FleetServiceServicer):
    def __init__(self, fake: FakeCoordinator) -> None:
        self.fake = fake

    def ListAgents(self, request, context):  # noqa: N802
        self.fake.admit("ListAgents", request, context)
        return fleet_pb2.ListAgentsResponse(agents=self.fake.agents.values())

    def ListPools(self, request, context):  # noqa: N802
        self.fake.admit("ListPools", request, context)
        return fleet_pb2.ListPoolsResponse(pools=self.fake.pools.values())

    def DrainAgent(self, request, context):  # noqa: N802
        self.fake.admit("DrainAgent", request, context)
        if request.agent not in self.fake.agents:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no agent {request.agent}")
        agent = self.fake.agents[request.agent]
        agent.presence = fleet_pb2.AGENT_PRESENCE_CONNECTED if request.undo else fleet_pb2.AGENT_PRESENCE_DRAINING
        return agent

    def PausePool(self, request, context):  # noqa: N802
        self.fake.admit("PausePool", request, context)
        if request.pool not in self.fake.pools:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no pool {request.pool}")
        self.fake.pools[request.pool].paused = request.paused
        return self.fake.pools[request.pool]
