"""Kills replicas, agents and supervisors at each step of a job's way: `python scripts/failpoints.py --times 50`.

Prints how often each point was died at and what the judge of the history says; ends with 1 when that is anything.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path


async def play(times: int, seed: int, keep: Path | None) -> int:
    """Plays, in a folder and with a PostgreSQL of its own; returns the exit code."""
    from coordinator.store.embedded import EmbeddedPostgres
    from tests.chaos.failpoints.fleet import clear
    from tests.chaos.failpoints.history import judge
    from tests.chaos.failpoints.play import Play

    settings = {"max_connections": "100"}
    with tempfile.TemporaryDirectory(prefix="hr-points-") as place:
        folder = Path(place) / "fleet"
        folder.mkdir()
        async with EmbeddedPostgres(Path(place) / "pg", settings=settings) as postgres:
            try:
                played = await Play(folder, postgres.dsn, times, random.Random(seed), print).run()
                complaints = judge(played.history)
            finally:
                left = await asyncio.to_thread(clear, folder)
                if keep is not None:
                    shutil.copytree(folder, keep, ignore=shutil.ignore_patterns("*sock"), dirs_exist_ok=True)
    complaints += [f"a process was left: {each[:200]}" for each in left]
    for point, count in played.wanted.items():
        print(f"{played.tally[point]:5} x {point}")
        if played.tally[point] < count:
            complaints.append(f"{point} was to be died at {count} times")
    attempts = sum(len(job.attempts) for job in played.history.jobs)
    print(
        f"{sum(played.tally.values())} deaths in {played.seconds:.0f} s: {len(played.history.runs)} runs,"
        f" {len(played.history.jobs)} jobs, {attempts} attempts; the last run ended {played.idle_s:.1f} s after the"
        f" last death; {len(complaints)} complaints"
    )
    for each in complaints:
        print(each[:500])
    return 1 if complaints else 0


def main() -> int:
    """Returns the exit code."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    parser = argparse.ArgumentParser(description="Kills at every point; exit 1 when a promise was broken.")
    parser.add_argument("--times", type=int, default=50, help="deaths at each point (default: 50)")
    parser.add_argument("--seed", type=int, default=1, help="of the order and the calls that are chosen (default: 1)")
    parser.add_argument("--keep", type=Path, help="a folder that gets all that the daemons said")
    asked = parser.parse_args()
    return asyncio.run(play(asked.times, asked.seed, asked.keep))


if __name__ == "__main__":
    sys.exit(main())
