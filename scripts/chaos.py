"""A campaign on real parts: `python scripts/chaos.py [--seed N] [--short] [--only WORD]`.

Faults come at random while jobs with known output run; then a ledger of what the jobs did, every byte of their logs,
and what is left on the machine are held against what Headrace says. Ends with 1 if anything is wrong. Needs root.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Plays one campaign; returns the exit code."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.chaos.campaign.conductor import play
    from tests.chaos.campaign.faults import FAULTS
    from tests.chaos.campaign.fleet import LONG, SHORT

    parser = argparse.ArgumentParser(description="Plays a campaign of faults on real parts; exit 1 if a promise broke.")
    parser.add_argument("--seed", type=int, default=1, help="the order of the faults (default: 1)")
    parser.add_argument("--short", action="store_true", help="the form that the tests play, with short leases")
    parser.add_argument("--jobs", type=int, help="how many jobs")
    parser.add_argument("--seconds", type=float, help="how long faults come")
    parser.add_argument("--only", metavar="WORD", action="append", help="only faults with this word in their names")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs if something is wrong")
    asked = parser.parse_args()
    scale = SHORT if asked.short else LONG
    wanted = {"jobs": asked.jobs, "seconds": asked.seconds}
    scale = dataclasses.replace(scale, **{name: value for name, value in wanted.items() if value is not None})
    words = asked.only or [""]
    faults = [each for each in FAULTS if any(word in each.__name__ for word in words)]
    if not faults:
        parser.error(f"no fault has that in its name: there are {', '.join(each.__name__ for each in FAULTS)}")
    folder = Path(tempfile.mkdtemp(prefix="hr-chaos-"))
    folder.chmod(0o755)
    is_right = False
    try:
        report = play(folder, scale, asked.seed, faults=faults)
        print(report)
        is_right = not report.complaints
    finally:
        if asked.keep and not is_right:
            print(f"all logs are in {folder}")
        else:
            shutil.rmtree(folder)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
