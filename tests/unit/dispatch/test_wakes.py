"""What replicas tell each other: every number arrives, in payloads that the database takes."""

from __future__ import annotations

import json
from dataclasses import fields

from coordinator.dispatch.port import Wake
from coordinator.store.wakes import _payloads


def test_no_payload_is_longer_than_a_notification_may_be() -> None:
    """PostgreSQL refuses 8,000 bytes and more, and the coordinator would end with it."""
    runs = frozenset(range((1 << 63) - 1200, (1 << 63) - 1))
    logs = list(range((1 << 63) - 1500, (1 << 63) - 1))
    payloads = _payloads("0" * 36, Wake(queue=True, cancels=True, agents=True, runs=runs), logs)
    assert max(map(len, payloads)) < 8000
    said = [json.loads(each) for each in payloads]
    assert {run for each in said for run in each["runs"]} == runs
    assert {log for each in said for log in each["logs"]} == set(logs)
    assert [each["kinds"] for each in said if each["kinds"]] == [["queue", "cancels", "agents"]]


def test_every_kind_of_wake_is_told_to_other_replicas() -> None:
    """One that is left out costs them a poll each time, and nobody would see why."""
    kinds = [each.name for each in fields(Wake) if each.name != "runs"]
    (payload,) = _payloads("0" * 36, Wake(**dict.fromkeys(kinds, True)), [])
    assert json.loads(payload)["kinds"] == kinds
