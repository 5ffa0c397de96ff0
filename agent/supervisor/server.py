"""The supervisor's socket: connections of agents, their requests, and who may make them."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from agent.problems import Cause
from agent.supervisor.attempt import Answer, Attempt
from agent.supervisor.clocks import Clocks
from agent.supervisor.loop import Loop
from agent.supervisor.protocol import MAJOR, MINOR, BadMessage, Decoder, Message, encode
from agent.supervisor.syncing import Syncing
from agent.supervisor.writer import LogWriter

_READ: Final = 256 << 10
_LINGER_MS: Final = 60 * 60_000
"""How long an ended attempt waits for an agent before its supervisor leaves; the spool stays."""


class Connection:
    """One agent. Writes what fits, and the rest when there is room."""

    def __init__(self, loop: Loop, sock: socket.socket, asked: Callable[[Connection, Message], None]) -> None:
        self._loop = loop
        self._sock = sock
        self._asked = asked
        self._decoder = Decoder()
        self._unsent = bytearray()
        self.told = 0
        """The last record that it was told of."""
        self.knows_refusal = False
        self.knows_failure = False
        self.open = True
        loop.watch(sock.fileno(), self._came)
        self.send({"headrace": [MAJOR, MINOR], "pid": os.getpid()})

    @property
    def idle(self) -> bool:
        """Whether all that was sent has gone out."""
        return not self._unsent

    def send(self, message: Message) -> None:
        """Sends it, now or when there is room; not at all when the agent is gone."""
        if self.open:
            self._unsent += encode(message)
            self._write()

    def _came(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._write()
        if not events & ~select.EPOLLOUT or not self.open:
            return
        try:
            data = self._sock.recv(_READ)
            messages = self._decoder.feed(data) if data else []
        except BlockingIOError:
            return
        except (OSError, BadMessage):
            self.close()
            return
        if not data:
            self.close()
        for message in messages:
            self._asked(self, message)

    def _write(self) -> None:
        try:
            sent = self._sock.send(self._unsent) if self._unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        del self._unsent[:sent]
        events = select.EPOLLIN | (select.EPOLLOUT if self._unsent else 0)
        self._loop.watch(self._sock.fileno(), self._came, events)

    def close(self) -> None:
        """Drops it."""
        if self.open:
            self.open = False
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()


class Server:
    """Takes requests and hands them to the attempt."""

    def __init__(self, loop: Loop, folder: Path, attempt: Attempt, writer: LogWriter, syncing: Syncing) -> None:
        self._loop = loop
        self._syncing = syncing
        self._folder = folder
        self._attempt = attempt
        self._writer = writer
        self._spool = syncing.spool
        self._boot = Clocks.boot
        self._heard = self._boot()
        self._nonce = os.urandom(16).hex()
        self._notes: dict[str, str] = {}
        self._connections: list[Connection] = []
        self._kept = -1
        self._socket = _listen(folder)
        loop.watch(self._socket.fileno(), self._accept)

    def _accept(self, _events: int) -> None:
        try:
            sock, _ = self._socket.accept()
        except OSError:
            return
        peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", peer)[1] not in {0, os.geteuid()}:
            sock.close()
            return
        sock.settimeout(0)
        self._connections.append(Connection(self._loop, sock, self._asked))

    def tick(self) -> int | None:
        """Once a round: the attempt's affairs, then news for the agents."""
        wait = self._attempt.tick()
        if (due := self._syncing.tick(self._boot())) is not None:
            wait = due if wait is None else min(wait, due)
        self._connections = [connection for connection in self._connections if connection.open]
        for connection in self._connections:
            if connection.told < self._spool.synced.sequence and connection.idle:
                connection.told = self._spool.synced.sequence
                connection.send({"spooled": connection.told})
            if self._attempt.kill_refused and not connection.knows_refusal:
                connection.knows_refusal = True
                connection.send({"kill_refused": True})
            if self._spool.broken and not connection.knows_failure:
                connection.knows_failure = True
                connection.send({"disk_failed": self._spool.broken})
        self._keep_state()
        if self._attempt.over and self._boot() > self._heard + _LINGER_MS:
            self._heard = self._boot()
            self._attempt.end(lambda _: self._loop.stop())
        return wait

    def _asked(self, connection: Connection, message: Message) -> None:
        now = self._boot()
        self._heard = now
        self._attempt.terms = self._attempt.terms._replace(heard=now)
        number = message.get("id")

        def answer(body: dict[str, Any]) -> None:
            connection.send({"id": number, **body} if "error" in body else {"id": number, "answer": body})

        try:
            self._do(str(message.get("op")), message, answer)
        except (KeyError, TypeError, ValueError) as error:
            answer({"error": f"the supervisor does not understand {message.get('op')!r}: {error!r}"})

    def _do(self, op: str, asked: Message, answer: Answer) -> None:
        attempt = self._attempt
        match op:
            case "launch":
                attempt.launch(asked, answer)
            case "step":
                attempt.step(asked, answer)
            case "end":
                attempt.end(answer)
            case "state":
                answer({**attempt.facts(), "notes": self._notes, "spooled": self._spool.synced.sequence})
            case "permit":
                answer({"nonce": self._nonce})
            case "open":
                answer({"section": self._writer.open_section(asked["kind"], asked["title"])})
            case "masked":
                answer({"texts": [self._writer.plain(text) for text in asked["texts"]]})
            case "tail":
                answer({"text": self._writer.tail().decode("utf-8", "replace")})
            case "leave" if not attempt.over:
                answer({"error": "the sandbox still lives: end it first"})
            case _ if (act := getattr(self, f"_{op}_asked", None)) is not None:
                act(asked)
                answer({})
            case _:
                answer({"error": f"this supervisor knows no {op!r}: it speaks version {MAJOR}.{MINOR}"})

    def _ping_asked(self, _: Message) -> None:
        """That it asked is all."""

    def _leave_asked(self, _: Message) -> None:
        self._loop.stop()

    def _note_asked(self, asked: Message) -> None:
        self._notes[str(asked["key"])] = str(asked["value"])

    def _say_asked(self, asked: Message) -> None:
        self._writer.say(asked["text"].encode("utf-8", "surrogateescape"))

    def _close_asked(self, asked: Message) -> None:
        self._writer.close_section(asked["result"])

    def _secrets_asked(self, asked: Message) -> None:
        self._writer.mask(bytes.fromhex(value) for value in asked["values"])

    def _cancel_asked(self, asked: Message) -> None:
        self._attempt.cancel(int(asked["grace_ms"]), Cause(asked["cause"]))

    def _kill_asked(self, asked: Message) -> None:
        self._attempt.kill(Cause(asked["cause"]), asked["sentence"])

    def _extend_asked(self, asked: Message) -> None:
        old = self._attempt.terms
        self._attempt.terms = old._replace(
            lease_ms=int(asked["lease_ms"]),
            deadline=int(asked.get("deadline", old.deadline)),
            grace_ms=int(asked.get("grace_ms", old.grace_ms)),
        )

    def _heartbeat_asked(self, asked: Message) -> None:
        terms = self._attempt.terms
        self._attempt.terms = terms._replace(heartbeat_sent=max(terms.heartbeat_sent, int(asked["sent"])))

    def _ack_asked(self, asked: Message) -> None:
        self._spool.ack(int(asked["sequence"]))
        self._attempt.room()

    def _keep_state(self) -> None:
        """`state.json`: what an agent wants to know should this process be gone; written when it has changed."""
        changes = self._attempt.changes
        if changes == self._kept:
            return
        facts = self._attempt.facts()
        wanted = ("phase", "running", "begun", "pid", "start", "container", "cancels")
        part = self._folder / "priv" / "state.json.part"
        try:
            part.write_text(json.dumps({"supervisor": os.getpid(), **{key: facts[key] for key in wanted}}))
            part.rename(part.with_suffix(""))
        except OSError:  # a full disk: the next round tries again
            return
        self._kept = changes

    def close(self) -> None:
        """Sends what is left to send, and removes the names."""
        for connection in self._connections:
            connection.close()
        self._socket.close()
        for name in ("sock", "state.json", "launch.log"):
            (self._folder / "priv" / name).unlink(missing_ok=True)


def _listen(folder: Path) -> socket.socket:
    """Listens on A/priv/sock, by way of a descriptor: a path may be longer than the name of a socket."""
    place = os.open(folder / "priv", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.bind(f"/proc/self/fd/{place}/sock")
    finally:
        os.close(place)
    (folder / "priv" / "sock").chmod(0o600)
    sock.listen(8)
    return sock
