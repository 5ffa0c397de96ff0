"""A job that prints 200 MB: every byte arrives in order, and nobody on the way grows with it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.e2e.scene import pids

pytestmark = [
    pytest.mark.timeout(420),
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="reads the memory of processes of other uids"),
]

SIZE = 200 << 20
# Lines of a build: a number, and words that compress neither perfectly nor not at all.
SCRIPT = f"""
import random
rng = random.Random(7)
words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(2000)]
def chunks():
    number = size = 0
    while size < {SIZE}:
        lines = []
        for _ in range(1000):
            lines.append(b"%09d %s\\n" % (number, b" ".join(rng.choices(words, k=14))))
            number += 1
        chunk = b"".join(lines)[:{SIZE} - size]
        size += len(chunk)
        yield chunk
"""
PRINT = SCRIPT + "import sys\nfor chunk in chunks():\n    sys.stdout.buffer.write(chunk)\n"
PIPELINE = """
name: long
stages:
  - name: a
    jobs:
      long: {network: none, steps: [{name: print, run: "exec python3 print.py"}]}
"""
BOUNDS_MB = {"coordinator": 220, "agent": 160, "supervisor": 60}
"""Resident, at most; what matters more is the growth below."""
GROWTH_MB = {"coordinator": 60, "agent": 40, "supervisor": 20}
"""From the first tenth of the log to the peak afterwards."""
WORDS = {
    "coordinator": ("headrace coordinator",),
    "agent": ("headrace agent",),
    "supervisor": ("supervisor/main.py",),
}


def pss(pid: int) -> float:
    """MiB of memory that are a process's own share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


class Samples(threading.Thread):
    """Looks at the daemons' memory ten times a second, beside what the log has reached by then."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.stop = threading.Event()
        self.seen: dict[str, list[tuple[float, float]]] = {name: [] for name in WORDS}

    def run(self) -> None:
        began = time.monotonic()
        while not self.stop.wait(0.1):
            for name, words in WORDS.items():
                try:
                    found = [pss(pid) for pid in pids(str(self.folder), *words)]
                except OSError:
                    continue
                if found:
                    self.seen[name].append((time.monotonic() - began, max(found)))


def judged(samples: Samples, took: float) -> dict[str, dict[str, float]]:
    """First and highest memory of each daemon."""
    figures = {}
    for name, seen in samples.seen.items():
        assert len(seen) > 5, f"{name} was hardly seen"
        start = seen[0][0]
        early = [size for when, size in seen if when - start < took / 10 + 1]
        figures[name] = {"early": round(max(early), 1), "peak": round(max(size for _, size in seen), 1)}
    return figures


def test_a_log_of_200_mb_arrives_whole_and_memory_stays_flat(scene, leftovers, capsys):
    """sha256 of what `headrace logs` prints is that of what was written; the figures are printed."""
    scene.repository(PIPELINE, {"print.py": PRINT})
    with scene.up() as up:
        samples = Samples(scene.folder)
        samples.start()
        began = time.monotonic()
        assert scene("run", "--detach").code == 0
        follower = scene.start("logs", "1", "long", "-f")
        follower.process.wait(300)
        took = time.monotonic() - began
        samples.stop.set()
        samples.join()
        begun = time.monotonic()
        stored = scene("logs", "1", "long", seconds=180)
        read = time.monotonic() - begun
        assert stored.code == 0, stored.err
        assert up.presences()["connected"] == {"local"}
    expected = hashlib.sha256()
    spoken: dict[str, object] = {}
    exec(SCRIPT, spoken)
    for chunk in spoken["chunks"]():  # type: ignore[operator]
        expected.update(chunk)
    for each in (follower.raw, scene.started[-2].raw):
        text = each.read_bytes()
        at = text.index(b"000000000 ")
        assert hashlib.sha256(text[at : at + SIZE]).hexdigest() == expected.hexdigest(), each
    figures = judged(samples, took)
    line = json.dumps({"bytes": SIZE, "live_s": round(took, 1), "read_s": round(read, 1), "pss_mib": figures})
    with capsys.disabled():
        sys.stdout.write(f"\n{line}\n")
    assert scene.json("show", "1")["state"] == "passed"
    for name, found in figures.items():
        assert found["peak"] <= BOUNDS_MB[name], line
        assert found["peak"] - found["early"] <= GROWTH_MB[name], line
