"""The cells of a matrix: every combination of its values, less what is excluded, and what is included besides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.pipeline.model import JobDef, Late, Placed, Scalar
from headrace.pipeline.problems import shown
from headrace.pipeline.values import as_text

Cell = Mapping[str, Scalar]
MAX_JOBS = 1_000
"""Of a run."""


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
    kept, unmatched = _without(made, exclude)
    kept += [each.value for each in include]
    # Those of the matrix always, and first: a cell is called alike whatever stands beside it.
    keys = tuple(dict.fromkeys((*values, *(key for cell in kept for key in cell))))
    return Cells(tuple({key: cell.get(key) for key in keys} for cell in kept), unmatched)


def _without(made: list[Cell], exclude: Sequence[Placed[Cell]]) -> tuple[list[Cell], tuple[Placed[Cell], ...]]:
    """The cells that no `exclude` is a part of, and the excludes that are a part of none. Each set of keys that is
    excluded by is looked at once, not each exclude."""
    wanted: dict[tuple[str, ...], set[_Values]] = {}
    for each in exclude:
        keys = tuple(sorted(each.value))
        wanted.setdefault(keys, set()).add(_values(each.value, keys))
    kept, found = made, set()
    for keys, values in wanted.items():
        if not keys or (made and not made[0].keys() >= set(keys)):
            continue
        found |= {(keys, each) for each in values & {_values(cell, keys) for cell in made}}
        kept = [cell for cell in kept if _values(cell, keys) not in values]
    unmatched = []
    for each in exclude:
        keys = tuple(sorted(each.value))
        if (keys, _values(each.value, keys)) not in found:
            unmatched.append(each)
    return list(kept), tuple(unmatched)


_Values = tuple[tuple[type, Scalar], ...]


def _values(cell: Cell, keys: tuple[str, ...]) -> _Values:
    """What a cell has under these keys, with the types: true is not 1."""
    return tuple((type(cell[key]), cell[key]) for key in keys)


def copies(job: JobDef, lists: Mapping[str, Sequence[Scalar]] | None = None) -> int:
    """How many jobs it becomes at most, as far as that is known. `lists`: by key, what expressions have given."""
    if job.matrix is None:
        return max(1, job.parallel)
    found = {
        key: (lists or {}).get(key, (None,)) if isinstance(each, Late) else each
        for key, each in job.matrix.values.items()
    }
    sizes = [len(each) for each in found.values()]
    return max(1, job.parallel) * min(math.prod(sizes) + len(job.matrix.include), MAX_JOBS)


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
