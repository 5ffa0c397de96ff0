"""The calls of the wire that a client makes, as values: a flow names one, a driver carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from headrace.v1 import blob_pb2, fleet_pb2, log_pb2, run_pb2

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    """One method: its path on the wire, and the types of its two messages."""

    path: str
    request: type[Request]
    response: type[Response]


CREATE = Method("/headrace.v1.RunService/Create", run_pb2.CreateRunRequest, run_pb2.CreateRunResponse)
GET = Method("/headrace.v1.RunService/Get", run_pb2.GetRunRequest, run_pb2.Run)
LIST = Method("/headrace.v1.RunService/List", run_pb2.ListRunsRequest, run_pb2.ListRunsResponse)
WATCH = Method("/headrace.v1.RunService/Watch", run_pb2.WatchRunRequest, run_pb2.RunChange)
CANCEL = Method("/headrace.v1.RunService/Cancel", run_pb2.CancelRunRequest, run_pb2.Run)
RETRY = Method("/headrace.v1.RunService/Retry", run_pb2.RetryRunRequest, run_pb2.Run)
APPROVE = Method("/headrace.v1.RunService/Approve", run_pb2.ApproveRunRequest, run_pb2.Run)

TAIL = Method("/headrace.v1.LogService/Tail", log_pb2.TailRequest, log_pb2.TailResponse)

ARTIFACTS = Method(
    "/headrace.v1.BlobService/ListArtifacts", blob_pb2.ListArtifactsRequest, blob_pb2.ListArtifactsResponse
)
DOWNLOAD = Method(
    "/headrace.v1.BlobService/DownloadArtifact",
    blob_pb2.DownloadArtifactRequest,
    blob_pb2.DownloadArtifactResponse,
)
BUNDLE = Method("/headrace.v1.BlobService/PrepareBundle", blob_pb2.PrepareBundleRequest, blob_pb2.PrepareBundleResponse)

AGENTS = Method("/headrace.v1.FleetService/ListAgents", fleet_pb2.ListAgentsRequest, fleet_pb2.ListAgentsResponse)
POOLS = Method("/headrace.v1.FleetService/ListPools", fleet_pb2.ListPoolsRequest, fleet_pb2.ListPoolsResponse)
DRAIN = Method("/headrace.v1.FleetService/DrainAgent", fleet_pb2.DrainAgentRequest, fleet_pb2.Agent)
PAUSE = Method("/headrace.v1.FleetService/PausePool", fleet_pb2.PausePoolRequest, fleet_pb2.Pool)
