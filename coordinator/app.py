"""The coordinator's composition root: the only place where its parts are wired together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

import grpc
import structlog
import uvloop
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from starlette.applications import Starlette

from coordinator.api.access import Caller, Tokens
from coordinator.api.agent_service import AgentService, AgentSessions
from coordinator.api.fleet_service import FleetService
from coordinator.api.guard import Guard
from coordinator.blobs.opening import BlobSettings, open_blob_store, open_folder
from coordinator.blobs.s3 import S3Settings
from coordinator.blobs.store import BlobError, BlobStore
from coordinator.blobs.urls import UrlSigner
from coordinator.data_directory import DataDirectory, DataDirectoryError
from coordinator.errors import BadInput, StoreDown
from coordinator.listening import SERVER_OPTIONS, raise_descriptors
from coordinator.loops import Loops
from coordinator.parts import SERVICES, Parts
from coordinator.settings import Settings, is_loopback, is_wildcard
from coordinator.store.clock import DatabaseClock
from coordinator.store.database import Database
from coordinator.store.embedded import EmbeddedError, EmbeddedPostgres
from coordinator.store.migrate import migrate, newest_revision
from coordinator.store.singletons import clear_terms
from coordinator.web.blob_endpoint import blob_endpoint
from coordinator.web.pages import pages
from headrace.daemon import logs
from headrace.daemon.ready import say_ready
from headrace.daemon.serving import CannotListen, address_of, listen, serving
from headrace.daemon.settings import BadSettings, read
from headrace.v1 import (
    agent_pb2_grpc,
    blob_pb2_grpc,
    fleet_pb2_grpc,
    log_pb2_grpc,
    run_pb2_grpc,
)

_log = structlog.get_logger(__name__)

_STOP_S = 2.0


class CannotStart(Exception):
    """One sentence for the operator: what is wrong, and how to mend it."""


def main(flags: Mapping[str, object]) -> int:
    """Runs a coordinator until SIGTERM. Returns 0, 2 for what is set wrong, or 3 for what cannot be reached."""
    try:
        settings, warnings = read(Settings, flags, os.environ, Path("/etc/headrace/coordinator.toml"))
    except BadSettings as error:
        sys.stderr.write(f"headrace coordinator: {error}\n")
        return 2
    logs.set_up(settings.log_level)
    for warning in warnings:
        _log.warning(warning)
    if few := raise_descriptors():
        _log.warning(few)
    try:
        uvloop.run(_until_signal(settings))
    except (CannotStart, CannotListen, DataDirectoryError, EmbeddedError, BlobError, BadInput) as error:
        sys.stderr.write(f"headrace coordinator: {error}\n")
        return 2
    except StoreDown as error:
        sys.stderr.write(f"headrace coordinator: {error}\n")
        return 3
    return 0


async def _until_signal(settings: Settings) -> None:
    """A signal that comes while it starts ends the start: nobody waits for what is not wanted any more."""
    stop, ready = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(run(settings, stop, ready.set), name="coordinator")

    def told() -> None:
        if not stop.is_set() and not ready.is_set():
            running.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    try:
        await running
    except asyncio.CancelledError:
        if not stop.is_set():
            raise


def _check_addresses(settings: Settings) -> None:
    """Raises CannotStart where nobody should or could come to us."""
    if not settings.insecure and not all(
        map(is_loopback, (settings.listen, settings.http_listen, settings.blob_listen))
    ):
        raise CannotStart(
            "this version speaks without TLS, and only on loopback: listen on 127.0.0.1, or set HEADRACE_INSECURE=true"
            " on a network that you trust"
        )
    local_blobs = not settings.blob_url or settings.blob_url.startswith("file:")
    if local_blobs and not settings.blob_public_url and is_wildcard(settings.blob_listen):
        raise CannotStart(
            f"nobody can be sent to {settings.blob_listen} for blobs: set HEADRACE_BLOB_PUBLIC_URL to the URL by which"
            " agents and clients reach this port"
        )


async def run(settings: Settings, stop: asyncio.Event, ready: Callable[[], object] = lambda: None) -> None:
    """Serves until `stop` is set. The exit stack closes in reverse: the server, the loops, the pool, PostgreSQL."""
    _check_addresses(settings)
    async with AsyncExitStack() as up:
        data = up.enter_context(DataDirectory(settings.data_dir))
        # gRPC binds its own socket, later and with a word of its own on standard error: what is taken is seen here.
        listen(settings.listen, setting="--listen (HEADRACE_LISTEN)").close()
        sockets = [
            listen(settings.http_listen, setting="--http-listen (HEADRACE_HTTP_LISTEN)"),
            listen(settings.blob_listen, setting="--blob-listen (HEADRACE_BLOB_LISTEN)"),
        ]
        for each in sockets:
            up.callback(each.close)
        dsn = settings.database_url.get_secret_value()
        postgres = None
        if not dsn:
            postgres = await up.enter_async_context(EmbeddedPostgres(data.postgres, sockets=_short_folder()))
            dsn = postgres.dsn
        direct = settings.database_direct_url.get_secret_value()
        _tell_newer(await migrate(direct or dsn))
        database = await up.enter_async_context(
            Database.open(dsn, size=settings.database_connections, pooler=bool(direct))
        )
        if postgres is not None:
            # The lock of the data directory proves that no other replica lives: nobody has to be waited for.
            await clear_terms(database)
        clock = DatabaseClock(database, time.time, time.monotonic)
        await clock.learn()
        blobs = await up.enter_async_context(_blobs(settings, data, address_of(sockets[1]), clock))
        parts = Parts(settings, database, direct or dsn, blobs, clock)
        tokens = Tokens({Caller.CLIENT: data.client_token(), Caller.AGENT: data.agent_token()})
        server, address = _server(parts, tokens, settings)
        loops = await up.enter_async_context(_loops(parts, postgres))
        await parts.health.tell()
        await server.start()
        up.push_async_callback(server.stop, _STOP_S)
        up.callback(parts.dispatch.send_away, "this coordinator is shutting down")
        web = pages(parts.metrics, why_not_ready=parts.why_not_ready, warning=clock.warning, refresh=parts.refresh)
        await up.enter_async_context(serving(web, sockets[0]))
        if (endpoint := _blob_endpoint(settings, data, clock)) is not None:
            await up.enter_async_context(serving(endpoint, sockets[1]))
        up.push_async_callback(parts.health.leave)
        facts = {"address": address, "http": address_of(sockets[0]), "blobs": address_of(sockets[1])}
        _log.info("coordinator is ready", **facts)
        ready()
        say_ready(settings.ready_fd, facts)
        await loops.wait(stop)
        _log.info("coordinator stops")


def _tell_newer(revision: str) -> None:
    if revision != (own := newest_revision()):
        _log.info("the database was made by a newer version, and is good for this one too", revision=revision, own=own)


def _server(parts: Parts, tokens: Tokens, settings: Settings) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server(interceptors=[Guard(tokens)], options=SERVER_OPTIONS)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(
        AgentService(
            AgentSessions(parts.dispatch, parts.reception, version=metadata.version("headrace")), parts.extensions
        ),
        server,
    )
    run_pb2_grpc.add_RunServiceServicer_to_server(parts.runs, server)
    log_pb2_grpc.add_LogServiceServicer_to_server(parts.logs, server)
    blob_pb2_grpc.add_BlobServiceServicer_to_server(parts.blobs, server)
    fleet_pb2_grpc.add_FleetServiceServicer_to_server(FleetService(parts.views, parts.bells, parts.limits), server)
    health_pb2_grpc.add_HealthServicer_to_server(parts.health.servicer, server)
    reflection.enable_server_reflection([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    host = settings.listen.rpartition(":")[0]
    try:
        port = server.add_insecure_port(settings.listen)
    except RuntimeError as error:
        raise CannotStart(
            f"cannot listen on {settings.listen}: another program has the port, or the address is not this"
            " machine's; set --listen (HEADRACE_LISTEN) to a free HOST:PORT"
        ) from error
    return server, f"{host}:{port}"


def _short_folder() -> Path:
    """Where the database's socket goes when the data directory's path is too long for one."""
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(named) if named.startswith("/") and Path(named).is_dir() else Path("/tmp")  # noqa: S108 - 0700 inside


async def _watch_postgres(postgres: EmbeddedPostgres) -> None:
    """A database that ends by itself ends its owner: whoever started the coordinator starts both anew."""
    raise StoreDown(await postgres.ended())


@contextlib.asynccontextmanager
async def _blobs(
    settings: Settings, data: DataDirectory, endpoint: str, clock: DatabaseClock
) -> AsyncIterator[BlobStore]:
    url = settings.blob_url or f"file://{data.blobs.absolute()}"
    store = open_blob_store(
        url,
        BlobSettings(
            endpoint_url=settings.blob_public_url or f"http://{endpoint}",
            secret=data.secret("blob-urls"),
            s3=S3Settings(
                endpoint=settings.s3_endpoint,
                region=settings.s3_region,
                access_key_id=settings.s3_access_key_id,
                secret_access_key=settings.s3_secret_access_key.get_secret_value(),
            ),
        ),
        clock.now,
    )
    try:
        yield store
    finally:
        await store.close()


def _blob_endpoint(settings: Settings, data: DataDirectory, clock: DatabaseClock) -> Starlette | None:
    """The endpoint of the `file://` store; an `s3://` store has its own."""
    if settings.blob_url and not settings.blob_url.startswith("file:"):
        return None
    folder = Path(unquote(urlsplit(settings.blob_url).path)) if settings.blob_url else data.blobs.absolute()
    return blob_endpoint(open_folder(folder), UrlSigner([data.secret("blob-urls")]), clock.now)


@contextlib.asynccontextmanager
async def _loops(parts: Parts, postgres: EmbeddedPostgres | None) -> AsyncIterator[Loops]:
    running = (
        *(parts.dispatch, parts.reaper, parts.wakes, parts.writer, parts.expansions),
        *(parts.compactor, parts.expiry, parts.health, parts.clock),
    )
    tasks = [asyncio.create_task(part.run(), name=type(part).__name__) for part in running]
    if postgres is not None:
        tasks.append(asyncio.create_task(_watch_postgres(postgres), name="embedded PostgreSQL"))
    try:
        yield Loops(tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_STOP_S)
        with contextlib.suppress(StoreDown):
            for term in parts.terms:
                await term.leave()
