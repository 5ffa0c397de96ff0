"""What a benchmark prints: figures for people, and last one JSON line for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Result:
    """One claim and its measure. `ratio`: ours divided by the peer's."""

    name: str
    value: float
    unit: str
    peer: str
    peer_value: float
    ratio: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", round(self.value / self.peer_value, 4))

    def line(self) -> str:
        """The JSON line."""
        return json.dumps(asdict(self))


def result(name: str, value: float, unit: str, peer: str, peer_value: float) -> Result:
    """A result with figures of sensible length. A peer that measured nothing is an error, not a ratio."""
    if value <= 0 or peer_value <= 0:
        raise ValueError(f"{name}: {value} and {peer_value} {unit} are no measures")
    return Result(name, round(value, 3), unit, peer, round(peer_value, 3))


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie; the nearest one, never between two."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(values: Sequence[float]) -> float:
    """The middle value; the upper one of two."""
    return quantile(values, 0.5)
