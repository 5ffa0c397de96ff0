"""Wakes other replicas: NOTIFY outside of transactions, coalesced, and LISTEN on a connection of its own.

A wake is a hint. One that is lost costs a poll's time: nobody relies on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable

import asyncpg

from coordinator.dispatch.port import Wake
from coordinator.errors import StoreDown
from coordinator.store.database import Database
from coordinator.store.sql import statements

SQL = statements("wakes")

_CHANNEL = "headrace"
# What is gathered before it is sent. Inside a transaction NOTIFY takes a lock of the whole database at commit.
_GATHER_S = 0.01
# A payload holds 8,000 bytes, and a bigint with its comma up to 21: what does not fit goes in another one.
_MOST_NUMBERS = 150
_AGAIN_S = 2.0
_KINDS = ("queue", "cancels", "agents", "groups", "expansions")
# How often the listening connection is asked whether it lives, and how long it may take to say so: one that was cut
# without a word (a failover, a firewall) is noticed within 10 s. It holds over sockets, TLS and proxies alike, and
# also for a server that hangs, of which TCP's own keepalives say nothing.
_PROBE_S = 5.0
_CONNECT_S = 10.0
# A listener that is gone without a word must not hold the server's queue of notifications: it is probed from there too.
_LISTENING = {
    "application_name": "headrace listen",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "2",
}


class Wakes:
    """The outbox and the ear of one replica. `heard` and `grew` are called for what other replicas said."""

    def __init__(
        self,
        database: Database,
        dsn: str,
        replica: str,
        *,
        heard: Callable[[Wake], None],
        grew: Callable[[frozenset[int]], None],
        probe_s: float = _PROBE_S,
    ) -> None:
        self._database = database
        self._dsn = dsn
        self._probe_s = probe_s
        self._replica = replica
        self._heard = heard
        self._grew = grew
        self._wake = Wake()
        self._logs: set[int] = set()
        self._something = asyncio.Event()

    def tell(self, wake: Wake) -> None:
        """Puts a wake into the outbox."""
        self._wake |= wake
        self._something.set()

    def tell_grown(self, attempts: frozenset[int]) -> None:
        """Puts attempts whose logs grew into the outbox."""
        self._logs |= attempts
        self._something.set()

    async def run(self) -> None:
        """Sends and listens until it is cancelled."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._send(), name="wakes: send")
            loops.create_task(self._listen(), name="wakes: listen")

    async def _send(self) -> None:
        while True:
            await self._something.wait()
            await asyncio.sleep(_GATHER_S)
            self._something.clear()
            wake, self._wake = self._wake, Wake()
            logs, self._logs = sorted(self._logs), set()
            # Whatever the database says to a hint: it is lost, and the coordinator lives.
            with contextlib.suppress(StoreDown, asyncpg.PostgresError):
                async with self._database.connection() as db:
                    for payload in _payloads(self._replica, wake, logs):
                        await db.execute(SQL.tell, _CHANNEL, payload)

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await self._listen_once()
            await asyncio.sleep(_AGAIN_S)

    async def _listen_once(self) -> None:
        connection = await asyncpg.connect(
            self._dsn, server_settings=_LISTENING, timeout=_CONNECT_S, command_timeout=self._probe_s
        )
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: ended.set())
        try:
            await connection.add_listener(_CHANNEL, self._take)
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), self._probe_s)
                    return
                await connection.execute(SQL.probe)
        finally:
            connection.terminate()

    def _take(self, connection: object, pid: int, channel: str, payload: str) -> None:
        del connection, pid, channel
        said = json.loads(payload)
        if said["replica"] == self._replica:
            return
        kinds = said["kinds"]
        runs = frozenset(said["runs"])
        self._heard(Wake(runs=runs, **{name: name in kinds for name in _KINDS}))
        if said["logs"]:
            self._grew(frozenset(said["logs"]))


def _payloads(replica: str, wake: Wake, logs: list[int]) -> list[str]:
    kinds = [name for name in _KINDS if getattr(wake, name)]
    runs = sorted(wake.runs)
    payloads = []
    while kinds or runs or logs:
        payloads.append(
            json.dumps({"replica": replica, "kinds": kinds, "runs": runs[:_MOST_NUMBERS], "logs": logs[:_MOST_NUMBERS]})
        )
        kinds, runs, logs = [], runs[_MOST_NUMBERS:], logs[_MOST_NUMBERS:]
    return payloads
