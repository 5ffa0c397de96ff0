"""How an agent and a supervisor speak: messages of JSON behind their length, on a unix socket.

The first message of a supervisor is `{"headrace": [MAJOR, MINOR], "pid"}`. Then the agent asks `{"id", "op", …}` and
is answered `{"id", "answer"}` or `{"id", "error", "cause"}`, in whatever order things get done; `{"spooled": n}`,
`{"kill_refused": true}` and, from minor 2 on, `{"disk_failed": sentence}` come by themselves. An agent speaks with
supervisors of its own minor and of the two before: a job outlives two upgrades. A minor adds operations and fields,
and changes nothing that is there.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Final

MAJOR: Final = 1
MINOR: Final = 2
OLDER: Final = 2
"""How many minors back an agent goes."""
MOST: Final = 32 << 20
"""Bytes of one message: a script and its environment have to fit."""

_LENGTH: Final = struct.Struct("<I")
Message = dict[str, Any]


class BadMessage(Exception):
    """What came is no message of this protocol: the connection is of no use any more."""


def encode(message: Message) -> bytes:
    """One message. ASCII, so that bytes which are no text survive as escaped surrogates."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MOST:
        raise BadMessage(f"a message of {len(data)} bytes is longer than {MOST}")
    return _LENGTH.pack(len(data)) + data


def spoken(version: object) -> bool:
    """Whether an agent of this version speaks that of a supervisor (`[major, minor]`)."""
    match version:
        case [int() as major, int() as minor]:
            return major == MAJOR and MINOR - OLDER <= minor <= MINOR
        case _:
            return False


class Decoder:
    """Takes bytes as they come, gives messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now. Raises BadMessage."""
        self._data += data
        messages = []
        while len(self._data) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data)
            if length > MOST:
                raise BadMessage(f"a message of {length} bytes is longer than {MOST}")
            end = _LENGTH.size + length
            if len(self._data) < end:
                break
            try:
                message = json.loads(self._data[_LENGTH.size : end])
            except ValueError as error:
                raise BadMessage("a message is no JSON") from error
            if not isinstance(message, dict):
                raise BadMessage("a message is no object")
            messages.append(message)
            del self._data[:end]
        return messages
