"""What the agent counts, for `/metrics`. One object, made in `app.py` and passed to whoever counts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 120.0)


class Metrics:
    """The agent's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.sandbox_start = Histogram(
            "headrace_agent_sandbox_start_seconds",
            "From the assignment until the first command could be started.",
            ["sandbox"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.running = Gauge("headrace_agent_running_jobs", "Jobs whose slot is taken.", registry=self.registry)
        self.slots = Gauge("headrace_agent_slots", "Slots of this agent.", registry=self.registry)
        self.log_bytes = Counter(
            "headrace_agent_log_bytes", "Compressed bytes of logs that were handed in.", registry=self.registry
        )
        self.spool_bytes = Gauge(
            "headrace_agent_spool_bytes", "Bytes of logs on this machine's disk.", registry=self.registry
        )
        self.reconnects = Counter(
            "headrace_agent_reconnects", "Connections to a coordinator that ended or failed.", registry=self.registry
        )
        self.connected = Gauge(
            "headrace_agent_connected", "1 while a coordinator has welcomed this agent.", registry=self.registry
        )
        self.outcomes = Counter(
            "headrace_agent_outcomes",
            "Attempts that ended, by outcome and cause.",
            ["outcome", "cause"],
            registry=self.registry,
        )
        self.damaged_bytes = Counter(
            "headrace_agent_log_damaged_bytes",
            "Bytes of logs that could not be read from this machine's disk any more. Must be 0.",
            registry=self.registry,
        )
        self.damaged_records = Counter(
            "headrace_agent_records_damaged",
            "Records of logs and of attempts that could not be read from this machine's disk any more. Must be 0.",
            registry=self.registry,
        )
        self.quarantined = Gauge(
            "headrace_agent_quarantined",
            "1 while the agent takes no job because its disk has failed. Must be 0.",
            registry=self.registry,
        )
        self.machinery_failures = Counter(
            "headrace_agent_machinery_failures",
            "Defects of the agent that ended a job. Must be 0.",
            registry=self.registry,
        )
