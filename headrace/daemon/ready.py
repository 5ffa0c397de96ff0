"""How a daemon tells its parent that it works: one JSON line on a descriptor, then the descriptor is closed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping


def say_ready(descriptor: int | None, facts: Mapping[str, object]) -> None:
    """Writes the line; a parent that no longer reads is none of our business."""
    if descriptor is None:
        return
    with contextlib.suppress(OSError):
        os.write(descriptor, json.dumps(facts).encode() + b"\n")
        os.close(descriptor)
