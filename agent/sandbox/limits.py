"""How much of the machine one sandbox gets."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeVar

from agent.sandbox.protocol import Limits

PIDS: Final = 4096
"""Processes and threads of one sandbox, unless the operator says otherwise."""


_OF_THE_MACHINE: Final = 3 / 4
"""Of its processes, for all jobs together: the rest is for the agent, supervisors and whatever else lives there."""


def together(memory: int, slots: int, machine: int, pids: int = PIDS) -> Limits:
    """The bounds of all jobs of an agent: what their slots may have, but never the machine's `machine` processes.

    Memory has a thirty-second more, for what the kernel needs for the groups themselves: a job that is alone must meet
    its own limit first.
    """
    return Limits(memory=memory + max(memory >> 5, 16 << 20), pids=min(pids * slots, int(machine * _OF_THE_MACHINE)))


def share(cpu: float, memory: int, slots: int, pids: int = PIDS) -> Limits:
    """One slot's share of `cpu` cores and `memory` bytes; `pids` is for each slot."""
    return Limits(cpu=cpu / slots, memory=memory // slots, pids=pids)


def asked_for(cpu: float, memory: int, pids: int) -> Limits:
    """What a job asks for; 0: nothing of its own."""
    return Limits(cpu=cpu or None, memory=memory or None, pids=pids or None)


def beyond(asked: Limits, slot: Limits) -> str:
    """What a job asks for that no slot has, as a sentence; empty: it fits."""
    pairs = (
        ("cpu cores", asked.cpu, slot.cpu),
        ("bytes of memory", asked.memory, slot.memory),
        ("processes", asked.pids, slot.pids),
    )
    too_much = [
        f"{_figure(wanted)} {what} where a slot has {_figure(most)}"
        for what, wanted, most in pairs
        if wanted is not None and most is not None and wanted > most
    ]
    return f"the job asks for {', and '.join(too_much)}: ask for less, or for another pool" if too_much else ""


def granted(asked: Limits, slot: Limits) -> Limits:
    """What a job gets: what it asks for, the slot's share where it asks for nothing, never more than the
    share."""
    return Limits(
        cpu=_smaller(asked.cpu, slot.cpu),
        memory=_smaller(asked.memory, slot.memory),
        pids=_smaller(asked.pids, slot.pids),
    )


def _figure(amount: float) -> str:
    return f"{amount:,}" if isinstance(amount, int) else f"{amount:g}"


LEAST: Final[Mapping[str, float]] = MappingProxyType({"cpu": 0.05, "memory": 16 << 20, "pids": 16})
"""What neither a service nor a job beside some can do with less of."""


class NoRoomError(Exception):
    """A job and its services do not fit into one slot. One sentence."""


def parted(asked: Limits, slot: Limits, services: int) -> tuple[Limits, Limits]:
    """What a job gets, and what each of its services does: together the slot's share.

    The job gets what it asks for, or half of the share; its services divide the rest evenly. What they need at least is
    theirs in any case, for the job was matched by what it asks for alone. Raises `NoRoomError`.
    """
    shares = {
        name: _parted(name, getattr(asked, name), getattr(slot, name), services) for name in ("cpu", "memory", "pids")
    }
    (cpu, each_cpu), (memory, each_memory), (pids, each_pids) = shares.values()
    return Limits(cpu, _whole(memory), _whole(pids)), Limits(each_cpu, _whole(each_memory), _whole(each_pids))


def _parted(name: str, asked: float | None, slot: float | None, services: int) -> tuple[float | None, float | None]:
    if slot is None:
        return asked, None
    job = min(slot / 2 if asked is None else asked, slot - LEAST[name] * services)
    if job < LEAST[name]:
        raise NoRoomError(
            f"the job and its {services} services do not fit into one slot of this agent: it has {_shown(name, slot)}, "
            f"and each of them needs {_shown(name, LEAST[name])}; use an agent with larger slots"
        )
    return job, (slot - job) / services


def _shown(name: str, amount: float) -> str:
    if name == "memory":
        return f"{amount / (1 << 20):.4g} MiB"
    return f"{amount:g} {'cores' if name == 'cpu' else 'processes'}"


def _whole(amount: float | None) -> int | None:
    return None if amount is None else int(amount)


Number = TypeVar("Number", int, float)


def _smaller(first: Number | None, second: Number | None) -> Number | None:
    known = [value for value in (first, second) if value is not None]
    return min(known) if known else None
