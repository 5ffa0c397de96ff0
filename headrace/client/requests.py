"""What each call of a client says, for both drivers: arguments in, a flow out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from headrace.client import flows, methods, wire
from headrace.client.channel import Connection
from headrace.client.flows import Flow
from headrace.client.types import Agent, Artifact, Pool, Run, Source
from headrace.v1 import blob_pb2, fleet_pb2, run_pb2


def digest_of(path: Path) -> tuple[str, int]:
    """SHA-256 in hex, and length, of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest.hexdigest(), file.tell()


class Requests:
    """Flows for one connection: request ids are made here, once for a call however often it is tried."""

    def __init__(self, connection: Connection) -> None:
        self._pace = connection.pace()
        self._new_id = connection.request_id

    def create_run(
        self,
        source: Source,
        pipeline_text: bytes,
        *,
        pipeline_file: str,
        event: str,
        parameters: Mapping[str, str],
        only_job: str,
        sandbox: str,
        included: Mapping[str, bytes],
        request_id: str,
    ) -> Flow[Run]:
        """Creates a run."""
        request = run_pb2.CreateRunRequest(
            request_id=request_id or self._new_id(),
            source=wire.source_message(source),
            pipeline_file=pipeline_file,
            pipeline_text=pipeline_text,
            event=event,
            parameters=parameters,
            only_job=only_job,
            sandbox=sandbox,
            included=included,
        )
        return flows.called(self._pace, methods.CREATE, request, lambda response: wire.run(response.run))

    def run(self, run_id: int, repository: str) -> Flow[Run]:
        """Shows a run."""
        request = run_pb2.GetRunRequest(run_id=run_id, repository=repository)
        return flows.called(self._pace, methods.GET, request, wire.run)

    def runs(self, repository: str, before: int, limit: int) -> Flow[list[Run]]:
        """Lists runs."""
        request = run_pb2.ListRunsRequest(repository=repository, before=before, limit=limit)
        return flows.called(
            self._pace, methods.LIST, request, lambda response: [wire.run(each) for each in response.runs]
        )

    def watch(self, run_id: int, after: int) -> Flow[None]:
        """Watches a run."""
        return flows.watch(self._pace, run_id, after)

    def tail(self, run_id: int, job: str, attempt: int, stream: str, offset: int, *, follow: bool) -> Flow[None]:
        """Tails a log."""
        return flows.tail(self._pace, flows.TailOf(run_id, job, attempt, stream, offset, follow))

    def cancel(self, run_id: int, reason: str, request_id: str) -> Flow[Run]:
        """Cancels a run."""
        request = run_pb2.CancelRunRequest(request_id=request_id or self._new_id(), run_id=run_id, sentence=reason)
        return flows.called(self._pace, methods.CANCEL, request, wire.run)

    def retry(self, run_id: int, job: str, request_id: str) -> Flow[Run]:
        """Retries a job, or all that did not pass."""
        request = run_pb2.RetryRunRequest(request_id=request_id or self._new_id(), run_id=run_id, job=job)
        return flows.called(self._pace, methods.RETRY, request, wire.run)

    def approve(self, run_id: int, stage: str, comment: str, request_id: str, *, reject: bool) -> Flow[Run]:
        """Decides about a stage that waits for an approval."""
        request = run_pb2.ApproveRunRequest(
            request_id=request_id or self._new_id(), run_id=run_id, stage=stage, reject=reject, comment=comment
        )
        return flows.called(self._pace, methods.APPROVE, request, wire.run)

    def artifacts(self, run_id: int) -> Flow[list[Artifact]]:
        """Lists artifacts."""
        request = blob_pb2.ListArtifactsRequest(run_id=run_id)
        return flows.called(
            self._pace,
            methods.ARTIFACTS,
            request,
            lambda response: [wire.artifact(each) for each in response.artifacts],
        )

    def download(self, run_id: int, name: str, folder: Path) -> Flow[list[Path]]:
        """Downloads an artifact."""
        return flows.download(self._pace, run_id, name, folder)

    def send_bundle(self, sha256: str, size: int, path: Path) -> Flow[str]:
        """Hands a bundle in."""
        return flows.send_bundle(self._pace, sha256, size, path)

    def agents(self) -> Flow[list[Agent]]:
        """Lists agents."""
        return flows.called(
            self._pace,
            methods.AGENTS,
            fleet_pb2.ListAgentsRequest(),
            lambda response: [wire.agent(each) for each in response.agents],
        )

    def drain(self, agent: str, request_id: str, *, undo: bool) -> Flow[Agent]:
        """Drains an agent."""
        request = fleet_pb2.DrainAgentRequest(request_id=request_id or self._new_id(), agent=agent, undo=undo)
        return flows.called(self._pace, methods.DRAIN, request, wire.agent)

    def pools(self) -> Flow[list[Pool]]:
        """Lists pools."""
        return flows.called(
            self._pace,
            methods.POOLS,
            fleet_pb2.ListPoolsRequest(),
            lambda response: [wire.pool(each) for each in response.pools],
        )

    def pause(self, pool: str, request_id: str, *, undo: bool) -> Flow[Pool]:
        """Pauses a pool, or resumes it."""
        request = fleet_pb2.PausePoolRequest(request_id=request_id or self._new_id(), pool=pool, paused=not undo)
        return flows.called(self._pace, methods.PAUSE, request, wire.pool)
