"""The places where processes of the product are killed: before and after each step of a job's way.

`written`: inside the transaction, which is rolled back by the death.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.chaos.failpoints.hooks import AFTER, BEFORE, Point

_DISPATCH = "coordinator.store.dispatching:PostgresDispatch"
_SERVE = "coordinator.api.agent_service:AgentSessions.serve"
_APPEND = "coordinator.store.logs:PostgresLogs.append"
_ANSWERED = "coordinator.api.log_service:LogService.Append"
_JOBS = "agent.jobs:RunningJobs"
_CLIENT = "agent.supervisor.client:SupervisorClient"
_REPORT = "agent.job:Job._report"
_SOURCE = "agent.forwarder:LogSource"
_ATTEMPT = "agent.supervisor.attempt:Attempt"
_SPOOL = "agent.supervisor.spool:Spool"


def _something(_args: Any, _named: Any, result: Any) -> object:
    return result


def _started(args: Any, _named: Any, _result: Any) -> object:
    return any(type(each).__name__ == "StartedReport" for each in args[1])


def _ended(args: Any, _named: Any, _result: Any) -> object:
    return any(type(each).__name__ == "EndedReport" for each in args[1])


def _says(kind: str) -> Any:
    return lambda _args, _named, message: message.WhichOneof("message") == kind


def _reports(kind: str) -> Any:
    return lambda _args, named, _result: kind in named


def _has_records(args: Any, _named: Any, _result: Any) -> object:
    return any(run.records for run in args[1])


def _follows(_args: Any, _named: Any, claimed: Any) -> object:
    """Whether something was claimed that had to wait for others: here, the deployments."""
    from headrace.v1.common_pb2 import JobSpec

    return any(JobSpec.FromString(each.spec).environment for each in claimed)


class _AfterAnOutcome:
    """Claims of a replica that has just recorded an outcome by which something was queued."""

    def __init__(self) -> None:
        self._armed = False

    def __call__(self, args: Any, _named: Any, _result: Any) -> object:
        from coordinator.store import attempts

        if not self._armed:
            # The first claim of all: from now on outcomes are listened to.
            self._armed, self._queued, record = True, False, attempts.report

            async def report(*words: Any) -> Any:
                recorded = await record(*words)
                self._queued = self._queued or recorded.wake.queue
                return recorded

            attempts.report = report
        return self._queued


COORDINATOR: Mapping[str, Point] = {
    "claim.before": Point(f"{_DISPATCH}.claim", BEFORE),
    "claim.written": Point("coordinator.store.attempts:claim", AFTER, _something),
    "claim.after": Point(f"{_DISPATCH}.claim", AFTER, _something),
    "assignment.before": Point(_SERVE, BEFORE, _says("assignments")),
    "assignment.after": Point(_SERVE, AFTER, _says("assignments")),
    "accepted.before": Point("coordinator.dispatch.dispatcher:Dispatch.acknowledge", BEFORE),
    "accepted.after": Point("coordinator.dispatch.dispatcher:Dispatch.acknowledge", AFTER),
    "started.before": Point(f"{_DISPATCH}.report", BEFORE, _started),
    "started.written": Point("coordinator.store.attempts:report", AFTER, _started),
    "started.after": Point(f"{_DISPATCH}.report", AFTER, _started),
    "permit.before": Point(f"{_DISPATCH}.permit", BEFORE),
    "permit.written": Point("coordinator.store.attempts:permit", AFTER),
    "permit.after": Point(f"{_DISPATCH}.permit", AFTER),
    "log.before": Point(_APPEND, BEFORE, _has_records),
    "log.after": Point(_APPEND, AFTER, _has_records),
    "log acknowledged.before": Point(_ANSWERED, BEFORE, writes=True),
    "log acknowledged.after": Point(_ANSWERED, AFTER, writes=True),
    "outcome.before": Point(f"{_DISPATCH}.report", BEFORE, _ended),
    "outcome.written": Point("coordinator.store.attempts:report", AFTER, _ended),
    "outcome.after": Point(f"{_DISPATCH}.report", AFTER, _ended),
    "outcome acknowledged.before": Point(_SERVE, BEFORE, _says("report_answers")),
    "outcome acknowledged.after": Point(_SERVE, AFTER, _says("report_answers")),
    "follow-up claim.before": Point(f"{_DISPATCH}.claim", BEFORE, _AfterAnOutcome()),
    "follow-up claim.written": Point("coordinator.store.attempts:claim", AFTER, _follows),
    "follow-up claim.after": Point(f"{_DISPATCH}.claim", AFTER, _follows),
}

AGENT: Mapping[str, Point] = {
    "agent assignment.before": Point(f"{_JOBS}.begin", BEFORE),
    "agent assignment.after": Point(f"{_JOBS}.begin", AFTER),
    "agent supervisor.before": Point(f"{_CLIENT}.start", BEFORE),
    "agent supervisor.after": Point(f"{_CLIENT}.start", AFTER),
    "agent started.before": Point(_REPORT, BEFORE, _reports("started")),
    "agent started.after": Point(_REPORT, AFTER, _reports("started")),
    "agent permit.before": Point(f"{_JOBS}.permitted", BEFORE),
    "agent permit.after": Point(f"{_JOBS}.permitted", AFTER),
    "agent log.before": Point(f"{_SOURCE}.take", BEFORE, lambda args, _named, _result: args[1]),
    "agent log.after": Point(f"{_SOURCE}.take", AFTER, _something),
    "agent log acknowledged.before": Point(f"{_CLIENT}.acknowledge", BEFORE),
    "agent log acknowledged.after": Point(f"{_CLIENT}.acknowledge", AFTER),
    "agent outcome.before": Point(_REPORT, BEFORE, _reports("ended")),
    "agent outcome.after": Point(_REPORT, AFTER, _reports("ended")),
    "agent outcome acknowledged.before": Point(f"{_JOBS}.answered", BEFORE),
    "agent outcome acknowledged.after": Point(f"{_JOBS}.answered", AFTER),
}

SUPERVISOR: Mapping[str, Point] = {
    "supervisor launch.before": Point(f"{_ATTEMPT}.launch", BEFORE),
    "supervisor launch.after": Point(f"{_ATTEMPT}.launch", AFTER),
    "supervisor step.before": Point(f"{_ATTEMPT}.step", BEFORE),
    "supervisor step.after": Point(f"{_ATTEMPT}.step", AFTER),
    "supervisor log.before": Point(f"{_SPOOL}.append", BEFORE),
    "supervisor log.after": Point(f"{_SPOOL}.append", AFTER),
    "supervisor log acknowledged.before": Point(f"{_SPOOL}.ack", BEFORE),
    "supervisor log acknowledged.after": Point(f"{_SPOOL}.ack", AFTER),
    "supervisor end.before": Point(f"{_ATTEMPT}.end", BEFORE),
    "supervisor end.after": Point(f"{_ATTEMPT}.end", AFTER),
}

OFTEN: Mapping[str, int] = {
    "claim.before": 3,
    "claim.after": 3,
    "log.before": 8,
    "log.after": 8,
    "log acknowledged.before": 8,
    "log acknowledged.after": 8,
    "outcome acknowledged.before": 4,
    "outcome acknowledged.after": 4,
    "agent log.before": 8,
    "agent log.after": 8,
    "agent log acknowledged.before": 8,
    "agent log acknowledged.after": 8,
    "supervisor log.before": 6,
    "supervisor log.after": 6,
}
"""Where one death is at the first up to this call, by chance; elsewhere it is the first or the second."""
