"""What the coordinator counts. One registry a process, passed in; names are those of docs/reference/metrics.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from coordinator.core.states import Cause
from coordinator.store.views import Row

_LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """The metrics of one coordinator."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        registry = self.registry
        self._queue = Gauge("headrace_queue_depth", "Jobs that could be claimed now.", ["pool"], registry=registry)
        self._running = Gauge("headrace_jobs_running", "Jobs that an agent holds.", ["pool"], registry=registry)
        self._agents = Gauge(
            "headrace_agents", "Agents by state. Those in quarantine must be 0.", ["state"], registry=registry
        )
        self._latency = Histogram(
            "headrace_dispatch_latency_seconds", "From queued to claimed.", buckets=_LATENCIES, registry=registry
        )
        self._outcomes = Counter(
            "headrace_outcomes", "Attempts that ended, by outcome and cause.", ["outcome", "cause"], registry=registry
        )
        self._returned = Counter(
            "headrace_assignments_returned", "Assignments refused or not acknowledged.", registry=registry
        )
        self._turned_away = Counter(
            "headrace_turned_away",
            "Hellos, calls, runs and streams refused because a limit was reached.",
            ["what"],
            registry=registry,
        )
        for what in ("hello", "call", "room", "stream"):
            self._turned_away.labels(what)
        self._sessions = Gauge("headrace_sessions", "Agents connected to this replica.", registry=registry)
        self._log_bytes = Counter("headrace_log_bytes", "Raw bytes of logs stored.", registry=registry)
        self._deleted = Counter(
            "headrace_expired",
            "What this replica deleted because its time was over: runs, artifacts, bundles, and objects of them.",
            ["what"],
            registry=registry,
        )
        for what in ("runs", "artifacts", "bundles", "objects"):
            self._deleted.labels(what)
        self._mended = Gauge(
            "headrace_jobs_mended",
            "Jobs found waiting for nothing, and queued, since this replica began. Must not grow.",
            registry=registry,
        )
        self._skew = Gauge(
            "headrace_clock_skew_seconds",
            "This machine's clock less the database's. More than 30 either way is named on /readyz.",
            registry=registry,
        )
        self._standing = {
            name: Gauge(f"headrace_{name}", f"{text} Must be 0.", registry=registry)
            for name, text in (
                ("lost_sight", "At-least-once attempts that run without a live session."),
                ("waiting_for_nothing", "Jobs that wait although nothing holds them."),
                ("queued_without_place", "Queued jobs that are neither claimable nor claimed."),
            )
        }

    def claimed(self, seconds: float) -> None:
        """A job was claimed so long after it was queued."""
        self._latency.observe(max(0.0, seconds))

    def returned(self) -> None:
        """An assignment came back."""
        self._returned.inc()

    def ended(self, outcome: str, cause: Cause) -> None:
        """An attempt ended."""
        self._outcomes.labels(outcome, cause or "none").inc()

    def turned_away(self, what: str) -> None:
        """A limit was reached: a `hello`, a `call`, the next run of a project without `room`, a `stream`."""
        self._turned_away.labels(what).inc()

    def stored_log(self, raw_bytes: int) -> None:
        """Bytes of logs became durable."""
        self._log_bytes.inc(raw_bytes)

    def deleted(self, what: str, count: int) -> None:
        """So many of these are gone."""
        self._deleted.labels(what).inc(count)

    def show(
        self,
        *,
        pools: Sequence[Row],
        agents: Sequence[Row],
        standing: Mapping[str, int],
        sessions: int,
        mended: int,
        skew_s: float,
    ) -> None:
        """Sets the gauges from what the database says now."""
        for pool in pools:
            self._queue.labels(pool["name"]).set(pool["queued"])
            self._running.labels(pool["name"]).set(pool["busy"])
        counts = dict.fromkeys(("connected", "draining", "quarantined", "gone"), 0)
        for agent in agents:
            counts[_standing_of(agent)] += 1
        for state, count in counts.items():
            self._agents.labels(state).set(count)
        for name, value in standing.items():
            self._standing[name].set(value)
        self._sessions.set(sessions)
        self._mended.set(mended)
        self._skew.set(skew_s)


def _standing_of(agent: Row) -> str:
    if not agent["connected"]:
        return "gone"
    if agent["quarantine"] or agent["refusal"]:
        return "quarantined"
    return "draining" if agent["drained"] or agent["leaving"] else "connected"
