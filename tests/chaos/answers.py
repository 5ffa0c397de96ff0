"""A proxy before PostgreSQL that lets a commit through and swallows its answer: whoever asked knows not what was done.

It reads the wire: which text a prepared statement has, whether a transaction is open, when the server has said that it
has committed and is ready for more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.proxy import Ends, Proxy
from tests.harness.postgres import dsn_at, socket_of

CUT, HELD = "cut", "held"
"""What becomes of the connection: it ends, or nothing is heard of it any more."""
_IDLE = b"I"


@dataclass
class Swallowed:
    """An answer that the server gave and nobody got. `tags`: what it says it has done, such as COMMIT."""

    statement: str
    tags: tuple[str, ...]
    committed: bool


@dataclass
class _Link:
    """One connection: what has been prepared, and what is under way."""

    texts: dict[bytes, str] = field(default_factory=dict)
    idle: bool = True
    """No transaction is open."""
    marked: str = ""
    """The statement that is waited for, once it has run in the transaction that is open."""
    swallowing: str = ""
    tags: list[str] = field(default_factory=list)


class Answers(Proxy):
    """Listens on TCP as long as it is entered, before the server of a DSN on a unix socket. `swallowed`: so far."""

    def __init__(self, dsn: str) -> None:
        super().__init__(socket_of(dsn))
        self._dsn = dsn
        self._wanted = ""
        self._how = CUT
        self.swallowed: list[Swallowed] = []

    @property
    def dsn(self) -> str:
        """The same database through this."""
        return dsn_at(self._dsn, self.address)

    def swallow(self, statement: str, how: str = CUT) -> None:
        """Swallows the answer to the next commit of this statement, alone or in a transaction; once."""
        self._how, self._wanted = how, statement

    def wait_for_swallowed(self, count: int, seconds: float) -> bool:
        """Whether so many have been swallowed within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.swallowed) >= count, seconds)

    def _pumps(self, near: Ends, far: Ends) -> tuple[Coroutine[Any, Any, None], Coroutine[Any, Any, None]]:
        link = _Link()
        return self._ask(link, near[0], far[1]), self._answer(link, far[0], near[1])

    async def _ask(self, link: _Link, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            length = await reader.readexactly(4)
            server.write(length + await reader.readexactly(int.from_bytes(length) - 4))  # the start has no type
            while True:
                kind, message, body = await _message(reader)
                self._look(link, kind, body)
                server.write(message)
                await server.drain()

    def _look(self, link: _Link, kind: bytes, body: bytes) -> None:
        ran = ""
        if kind == b"P":
            name, text, *_ = body.split(b"\0")
            link.texts[name] = text.decode()
        elif kind == b"B":
            _, name, *_ = body.split(b"\0")
            ran = link.texts[name]
        elif kind == b"Q":
            ran = body.rstrip(b"\0").decode()
        if ran and ran == self._wanted:
            self._wanted, link.marked = "", ran
            if link.idle:
                link.swallowing = ran
        elif ran == "COMMIT;" and link.marked:
            link.swallowing = link.marked

    async def _answer(self, link: _Link, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                kind, message, body = await _message(reader)
                if kind == b"Z":
                    link.idle = body == _IDLE
                if not link.swallowing:
                    client.write(message)
                    await client.drain()
                elif kind == b"C":
                    link.tags.append(body.rstrip(b"\0").decode())
                elif kind == b"Z":
                    self._note(link)
                    if self._how == HELD:
                        await asyncio.Event().wait()  # until whoever asked gives up
                    return

    def _note(self, link: _Link) -> None:
        with self._changed:
            self.swallowed.append(Swallowed(link.swallowing, tuple(link.tags), committed=link.idle))
            self._changed.notify_all()


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes, bytes]:
    """The next one: its type, all of it, and what is behind its length."""
    head = await reader.readexactly(5)
    body = await reader.readexactly(int.from_bytes(head[1:]) - 4)
    return head[:1], head + body, body
