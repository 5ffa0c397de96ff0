"""The cells of a matrix: every combination of its values, less what is excluded, and what is included besides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.pipeline.model import Placed, Scalar
from headrace.pipeline.problems import shown
from headrace.pipeline.values import as_text

Cell = Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Cells:
    """What a matrix makes. Every cell has every key of any cell; a missing one is None."""

    cells: tuple[Cell, ...]
    unmatched: tuple[Placed[Cell], ...] = ()
    """Excludes that exclude nothing."""


class TooManyCells(ValueError):
    """More cells than a run may have jobs. The message is the number."""


def cells_of(
    values: Mapping[str, Sequence[Scalar]],
    include: Sequence[Placed[Cell]] = (),
    exclude: Sequence[Placed[Cell]] = (),
    *,
    most: int,
) -> Cells:
    """The cells in the order of the file, the first key slowest; `include` adds cells, and changes none.

    Raises `TooManyCells` before any is made.
    """
    count = (math.prod(len(each) for each in values.values()) if values else 0) + len(include)
    if count > most:
        raise TooManyCells(f"{count:,}")
    made: list[Cell] = []
    if values:
        made = [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]
    unmatched = tuple(each for each in exclude if not any(_is_part(each.value, cell) for cell in made))
    kept = [cell for cell in made if not any(_is_part(each.value, cell) for each in exclude)]
    kept += [each.value for each in include]
    keys = tuple(dict.fromkeys(key for cell in kept for key in cell))
    return Cells(tuple({key: cell.get(key) for key in keys} for cell in kept), unmatched)


def _is_part(part: Cell, cell: Cell) -> bool:
    return bool(part) and all(key in cell and _same(cell[key], value) for key, value in part.items())


def _same(one: Scalar, other: Scalar) -> bool:
    """Equal, and of one type: True is not 1."""
    return type(one) is type(other) and one == other


def label(cell: Cell, shard: int = 0) -> str:
    """A cell as it stands behind its job's name: `[python=3.11,os=trixie]`; nothing for a job without cells."""
    parts = [f"{key}={as_text(value)}" for key, value in cell.items() if value is not None]
    if shard:
        parts.append(f"shard={shard}")
    return f"[{','.join(parts)}]" if parts else ""


def double(cells: Sequence[Cell]) -> Cell | None:
    """The first cell that stands there twice, or None."""
    seen: set[str] = set()
    for cell in cells:
        name = label(cell)
        if name in seen:
            return cell
        seen.add(name)
    return None


def described(cell: Cell) -> str:
    """A cell for a sentence."""
    return shown(label(cell) or "[]", 200)
