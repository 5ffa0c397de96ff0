"""A clock that steps while a process runs: libfaketime, preloaded, told by a file.

The wall clock alone is another: the monotonic clock and the one since boot go on as they are, for a machine's own clock
that is set anew does not move them either.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

HOUR = 3600


class SteppedClock:
    """`environment` is for the process; `step` sets its clock for good, also for the processes that it starts.

    `cached`: they find out within a second, and do not read a file whenever they ask for the time.
    """

    def __init__(self, folder: Path, *, cached: bool = False) -> None:
        self._file = folder / "time"
        self._reads = {"FAKETIME_CACHE_DURATION": "1"} if cached else {"FAKETIME_NO_CACHE": "1"}
        self.step(0)

    @property
    def environment(self) -> Mapping[str, str]:
        """What the process has to be given."""
        return {
            "LD_PRELOAD": library(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            **self._reads,
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
        }

    def wrapped(self, program: str) -> str:
        """A program that runs another one, and all that it starts, by this clock."""
        wrapper = self._file.with_name(program)
        told = "".join(f"export {name}='{value}'\n" for name, value in self.environment.items())
        wrapper.write_text(f'#!/bin/sh\n{told}exec {shutil.which(program)} "$@"\n')
        wrapper.chmod(0o755)
        return str(wrapper)

    def step(self, seconds: int) -> None:
        """From now on the clock is so far ahead of the machine's own (or behind it)."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.chmod(0o644)
        new.replace(self._file)


def library() -> str:
    """Where Debian's package has put it. A machine without it fails the test: `scripts/test_needs` installs it."""
    for found in sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")):
        return str(found)
    pytest.fail("libfaketime is missing: apt-get install libfaketime")
