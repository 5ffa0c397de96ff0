"""Numbers that a person types: each mistake is one sentence of ours, whatever library reads the command line."""

from __future__ import annotations

from collections.abc import Callable

from headrace.errors import BadInput

MOST = (1 << 63) - 1
"""The highest number that a run or a byte can have on the wire."""


def whole(name: str, least: int, most: int = MOST) -> Callable[[str], int]:
    """Reads a whole number of an option; raises BadInput that names the option and what it takes."""

    def number(text: str) -> int:
        found = _number(str(text))
        if found is None or not least <= found <= most:
            bounds = f"of {least} or more" if most == MOST else f"from {least} to {most}"
            raise BadInput(f"{name} {text}: give a whole number {bounds}")
        return found

    return number


def run_number(text: str) -> int:
    """The number of a run; BadInput says where numbers are to be had."""
    found = _number(str(text))
    if found is None or not 1 <= found <= MOST:
        raise BadInput(f"{text!r} is no number of a run: `headrace runs` lists them")
    return found


def run_and_job(first: str | None, second: str | None) -> tuple[int | None, str | None]:
    """What `[RUN] [JOB]` means: a first word that is no number is a job, of the latest run."""
    if first is None or first.removeprefix("-").isdecimal():
        return (None if first is None else run_number(first)), second
    if second is not None:
        raise BadInput(f"{first!r} is no number of a run: `headrace runs` lists them; left out, it is the latest")
    return None, first


def _number(text: str) -> int | None:
    try:
        return int(text) if text.isascii() else None
    except ValueError:
        return None
