"""What the forwarder takes from one attempt's spool for one message."""

from __future__ import annotations

from pathlib import Path

from agent.forwarder import MESSAGE_RECORDS, SHARE_RECORDS, LogSource
from agent.supervisor.records import Kind
from agent.supervisor.spool import Spool
from coordinator.logs.bounds import MESSAGE_MOST


def test_a_spool_of_very_small_records_is_handed_in_by_messages_that_the_coordinator_takes(tmp_path: Path) -> None:
    """A dot a moment during an outage is thousands of records in few bytes: all arrive, in order, none refused."""
    spool = Spool(tmp_path)
    for _ in range(2 * SHARE_RECORDS + 500):
        spool.append(Kind.FRAME, b".", time_ms=5, section=1, raw_length=1)
    spool.close()
    source = LogSource(1, b"token", tmp_path, lambda: None)
    taken = list(iter(lambda: source.take(source.read()), []))
    assert [len(each) for each in taken] == [SHARE_RECORDS, SHARE_RECORDS, 500]
    assert [record.sequence for each in taken for record in each] == list(range(1, 2 * SHARE_RECORDS + 501))
    assert MESSAGE_RECORDS - 1 + SHARE_RECORDS <= MESSAGE_MOST
