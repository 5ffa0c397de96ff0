"""Agent and supervisor may be of different versions, and a connection may be cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.supervisor import protocol
from agent.supervisor.protocol import BadMessage, Decoder, encode, spoken

MESSAGES = st.lists(st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(), max_size=3), max_size=5)


@given(MESSAGES, st.integers(1, 20))
def test_messages_come_through_in_any_pieces(messages: list[protocol.Message], size: int) -> None:
    """A socket keeps no bounds of messages."""
    data, decoder = b"".join(map(encode, messages)), Decoder()
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    assert [message for part in parts for message in decoder.feed(part)] == messages


def test_bytes_that_are_no_text_survive() -> None:
    """Scripts and variables may hold any byte."""
    text = bytes(range(1, 256)).decode("utf-8", "surrogateescape")
    assert Decoder().feed(encode({"script": text})) == [{"script": text}]


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x02\0\0\0{{", b"\x02\0\0\0[]"])
def test_what_is_no_message_ends_the_connection(data: bytes) -> None:
    """Nothing is allocated for a length that nobody may send."""
    with pytest.raises(BadMessage):
        Decoder().feed(data)


def test_an_agent_speaks_its_own_minor_and_two_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job outlives two upgrades of its agent."""
    monkeypatch.setattr(protocol, "MINOR", 7)
    assert [minor for minor in range(12) if spoken([protocol.MAJOR, minor])] == [5, 6, 7]
    assert not spoken([protocol.MAJOR + 1, 7])
    assert not spoken("1.7")
