"""Runs seeds of the simulation: `python scripts/simulate.py --seeds N [--from K]`.

Prints the first seed that breaks a property, with its trace, and ends with 1. The seed is the whole bug report:
`--seeds 1 --from SEED` plays it again, exactly.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path


def main() -> int:
    """Runs the seeds; returns the exit code."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.chaos.simulation.world import run_seed

    parser = argparse.ArgumentParser(description="Runs seeds of the simulation; exit 1 for the first that fails.")
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds (default: 200)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed (default: 0)")
    parser.add_argument("--last", type=int, default=400, help="how many lines of a trace to print (default: 400)")
    parser.add_argument("--trace", action="store_true", help="print the trace of every seed")
    parser.add_argument("--keep-going", action="store_true", help="name all seeds that fail, without their traces")
    asked = parser.parse_args()
    begun, virtual, failed = time.monotonic(), 0.0, 0
    for seed in range(asked.first, asked.first + asked.seeds):
        outcome = run_seed(seed)
        virtual += outcome.seconds
        if asked.trace or (outcome.complaints and not asked.keep_going):
            print("\n".join(outcome.trace[-asked.last :]))
        if outcome.complaints:
            failed += 1
            print(f"seed {seed} fails: {outcome.complaints[0]}", flush=True)
            if not asked.keep_going:
                print(f"play it again: python scripts/simulate.py --seeds 1 --from {seed}")
                return 1
    print(f"{asked.seeds} seeds, {failed} failed: {virtual:.0f} virtual s in {time.monotonic() - begun:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
