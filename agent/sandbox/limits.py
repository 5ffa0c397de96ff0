"""How much of the machine one sandbox gets."""

from __future__ import annotations

from typing import Final, TypeVar

from agent.sandbox.protocol import Limits

PIDS: Final = 4096
"""Processes and threads of one sandbox, unless the operator says otherwise."""


def share(cpu: float, memory: int, slots: int, pids: int = PIDS) -> Limits:
    """One slot's share of `cpu` cores and `memory` bytes; `pids` is for each slot."""
    return Limits(cpu=cpu / slots, memory=memory // slots, pids=pids)


def granted(asked: Limits, slot: Limits) -> Limits:
    """What a job gets: what it asks for, the slot's share where it asks for nothing, never more than the
    share."""
    return Limits(
        cpu=_smaller(asked.cpu, slot.cpu),
        memory=_smaller(asked.memory, slot.memory),
        pids=_smaller(asked.pids, slot.pids),
    )


Number = TypeVar("Number", int, float)


def _smaller(first: Number | None, second: Number | None) -> Number | None:
    known = [value for value in (first, second) if value is not None]
    return min(known) if known else None
