"""The parts of a replica, built from the bottom up."""

from __future__ import annotations

import secrets
import time
import uuid

from coordinator.api.blob_service import BlobService
from coordinator.api.expansions import Expansions
from coordinator.api.extensions import Extensions
from coordinator.api.health import Health
from coordinator.api.limits import Limits
from coordinator.api.log_service import LogService
from coordinator.api.run_service import RunService
from coordinator.blobs.expiry import Expiry
from coordinator.blobs.store import BlobStore
from coordinator.core.bucket import Rate
from coordinator.dispatch.bells import LocalBells
from coordinator.dispatch.dispatcher import Dispatch, Timing
from coordinator.dispatch.reaper import Reaper
from coordinator.dispatch.reception import Reception
from coordinator.logs.bells import LogBells
from coordinator.logs.compaction import Compactor
from coordinator.logs.reader import LogReader
from coordinator.logs.writer import LogWriter
from coordinator.metrics import Metrics
from coordinator.settings import Settings
from coordinator.store.artifacts import Artifacts
from coordinator.store.clock import DatabaseClock
from coordinator.store.database import Database
from coordinator.store.dispatching import PostgresDispatch
from coordinator.store.expanding import PostgresExpansions
from coordinator.store.extending import PostgresExtensions
from coordinator.store.logs import PostgresLogs
from coordinator.store.runs import PostgresRuns, Unfinished
from coordinator.store.singletons import Singleton
from coordinator.store.views import Views
from coordinator.store.wakes import Wakes
from headrace.v1 import agent_pb2, blob_pb2, fleet_pb2, log_pb2, run_pb2

SERVICES = tuple(
    service.full_name
    for file in (agent_pb2, run_pb2, log_pb2, blob_pb2, fleet_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
"""Full names of the gRPC services, without health and reflection."""
_HELLOS_AT_ONCE = 50
"""Under way at a time: an agent waits for its welcome while the database opens so many sessions, and gives up soon."""


class Parts:
    """All that a replica consists of, but its servers."""

    def __init__(
        self, settings: Settings, database: Database, dsn: str, blobs: BlobStore, clock: DatabaseClock
    ) -> None:
        replica = str(uuid.uuid4())
        self.clock = clock
        self.metrics = metrics = Metrics()
        self._database = database
        self.wakes = Wakes(
            database,
            dsn,
            replica,
            heard=lambda wake: self.bells.heard(wake),  # noqa: PLW0108 - the bells are made below
            grew=lambda attempts: self.log_bells.ring(attempts=attempts),
        )
        self.log_bells = LogBells(publish=self.wakes.tell_grown)
        self.bells = LocalBells(self.wakes.tell, also=lambda wake: self.log_bells.ring(runs=wake.runs))
        timing = Timing(heartbeat=settings.heartbeat_s, lease=settings.lease_s, long_lease=settings.long_lease_s)
        store = _store(settings, database, self.bells)
        self.dispatch = Dispatch(
            store,
            self.bells,
            timing=timing,
            clock=time.monotonic,
            make_session_id=lambda: str(uuid.uuid4()),
            replica=replica,
            measures=metrics,
        )
        reaping = Singleton(database, "reaper", time.monotonic, lease_s=timing.term)
        compacting, expiring = (Singleton(database, name, time.monotonic) for name in ("compactor", "expiry"))
        self.terms = [reaping, compacting, expiring]
        self.reaper = Reaper(
            store,
            reaping,
            self.bells,
            timing=timing,
            clock=time.monotonic,
            fleet_is_fixed=settings.embedded,
            queue_timeout_s=settings.queue_timeout_s,
        )
        self.reception, self.limits = _limits(settings, metrics)
        self.views = Views(database, self.bells)
        self.writer = LogWriter(PostgresLogs(database), self.log_bells, stored=metrics.stored_log)
        self.compactor = Compactor(database, blobs, compacting, bells=self.log_bells)
        self.expiry = Expiry(database, blobs, expiring, keep_runs_s=settings.keep_runs_s, deleted=metrics.deleted)
        self.runs = RunService(
            PostgresRuns(database, self.bells, long_lease_s=settings.long_lease_s),
            self.views,
            self.bells,
            limits=self.limits,
            local=settings.local_paths,
            run_url=settings.public_url,
        )
        self.extensions = Extensions(PostgresExtensions(database, self.bells), run_url=settings.public_url)
        self.expansions = Expansions(PostgresExpansions(database, self.bells), self.bells, run_url=settings.public_url)
        self.logs = LogService(self.writer, LogReader(database, blobs, self.log_bells), self.limits)
        self.blobs = BlobService(Artifacts(database), blobs)
        self.health = Health(self.why_not_ready, SERVICES)

    async def why_not_ready(self) -> str:
        """One sentence while work cannot flow here."""
        if self.dispatch.healthy:
            return f"the database cannot write: {refusal}" if (refusal := self._database.refusal) else ""
        return f"heartbeats are not being committed: {self.dispatch.trouble or 'the database does not answer'}"

    async def refresh(self) -> None:
        """Reads the gauges anew."""
        self.metrics.show(
            pools=await self.views.pools(),
            agents=await self.views.agents(),
            standing=await self.views.standing(),
            sessions=self.dispatch.sessions,
            mended=self.reaper.mended,
            skew_s=self.clock.skew_s,
        )


def _store(settings: Settings, database: Database, bells: LocalBells) -> PostgresDispatch:
    # Where there is but one agent, nobody else could do its jobs.
    quarantine_after = 0 if settings.embedded else settings.quarantine_after
    return PostgresDispatch(database, bells, lambda: secrets.token_bytes(16), quarantine_after=quarantine_after)


def _limits(settings: Settings, metrics: Metrics) -> tuple[Reception, Limits]:
    """What agents and what clients may ask of this replica."""
    reception = Reception(
        Rate(settings.hellos_per_s, settings.hellos_burst),
        at_once=_HELLOS_AT_ONCE,
        clock=time.monotonic,
        turned_away=lambda: metrics.turned_away("hello"),
    )
    return reception, Limits(
        caller=Rate(settings.changes_per_s, settings.changes_burst),
        subject=Rate(settings.project_changes_per_s, settings.project_changes_burst),
        streams=settings.streams_most,
        unfinished=Unfinished(settings.project_runs_most, settings.project_jobs_most),
        clock=time.monotonic,
        turned_away=metrics.turned_away,
    )
