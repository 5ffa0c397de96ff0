"""The client SDK: `Client` for asyncio, `SyncClient` for everything else, and what they answer with.

    with SyncClient("127.0.0.1:7433", token) as headrace:
        for change in headrace.watch(12):
            print(change.run or change.job)

Errors are in `headrace.errors`, the words of states in `headrace.client.types`.
"""

from headrace.client.client import Client
from headrace.client.pace import RetryPolicy
from headrace.client.sync_client import SyncClient
from headrace.client.types import (
    Agent,
    Artifact,
    Attempt,
    Job,
    LogRecord,
    Pool,
    Run,
    RunChange,
    Source,
    StepResult,
)

__all__ = [
    "Agent",
    "Artifact",
    "Attempt",
    "Client",
    "Job",
    "LogRecord",
    "Pool",
    "RetryPolicy",
    "Run",
    "RunChange",
    "Source",
    "StepResult",
    "SyncClient",
]
