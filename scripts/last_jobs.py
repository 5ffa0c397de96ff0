"""Ends the last jobs of a stage at once on three replicas: `python scripts/last_jobs.py --times 2000`.

Ends with 1 when a stage behind them does not start.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path


async def play(times: int, seed: int) -> int:
    """Plays on a PostgreSQL of its own; returns the exit code."""
    from coordinator.store.embedded import EmbeddedPostgres
    from coordinator.store.migrate import migrate
    from tests.chaos import last_jobs

    with tempfile.TemporaryDirectory(prefix="hr-last-") as folder:
        async with EmbeddedPostgres(Path(folder)) as postgres:
            await migrate(postgres.dsn)
            begun = time.monotonic()
            try:
                done = await last_jobs.play(postgres.dsn, times, seed)
            except last_jobs.Stuck as error:
                print(error)
                return 1
            print(f"{done} stages ended, the next one started each time: {time.monotonic() - begun:.0f} s, seed {seed}")
    return 0


def main() -> int:
    """Returns the exit code."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    parser = argparse.ArgumentParser(description="Ends the last jobs of a stage at once; exit 1 when one gets stuck.")
    parser.add_argument("--times", type=int, default=2000, help="how many stages (default: 2000)")
    parser.add_argument("--seed", type=int, default=1, help="of which replica hears what, and when (default: 1)")
    asked = parser.parse_args()
    return asyncio.run(play(asked.times, asked.seed))


if __name__ == "__main__":
    sys.exit(main())
