"""Checks the model of the lease protocol, docs/model/lease.pml, with spin: `python scripts/check_model.py`.

Each property is searched to the end: a search that is cut short, by memory or depth, is a failure. Then each rule is
taken out of the protocol, one at a time, and spin has to find the history in which that goes wrong: a check that stays
green without the rule says nothing about it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).resolve().parent.parent / "docs" / "model" / "lease.pml"
TOGETHER = 2
MEMORY_MB = 1800
"""Of one search: two run at a time, in less than 4 GB."""
DEPTH = 200_000
PATIENCE_S = 900
"""For a machine that others use as well; alone, the longest search takes less than a tenth of it."""

ALIKE = ("ATTEMPTS=2",)
AT_ONCE = ("JOBS=2", "ATTEMPTS=3", "FAULTS=2")
THREE = ("ATTEMPTS=3", "FAULTS=3")
COUNTED = ("ATTEMPTS=2", "COUNTERS")
DEPLOYED = ("AT_MOST_ONCE", "ATTEMPTS=2", "FAULTS=3")
IN_THE_END = ("LIVENESS", "JOBS=2", "ATTEMPTS=4", "FAULTS=1")
AFTER_TWO = ("LIVENESS", "ATTEMPTS=4", "FAULTS=2")
DEPLOYED_IN_THE_END = ("AT_MOST_ONCE", "LIVENESS", "ATTEMPTS=2", "FAULTS=1")


@dataclass(frozen=True, slots=True)
class Property:
    """What has to hold. `world`: the switches of the model under which it is searched."""

    sentence: str
    world: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A rule that is taken out. `by`: what pan has to complain of."""

    switch: str
    sentence: str
    world: tuple[str, ...]
    by: str


PROPERTIES = (
    Property("one live lease of a job, one outcome: 1 job, 2 claims, any number of faults", ALIKE),
    Property("the same: 1 job, 3 claims, 3 faults", THREE),
    Property("the same, and no slot given twice: 2 jobs, 3 claims, 2 faults", AT_ONCE),
    Property("no committed heartbeat is overlooked: 2 claims, any number of faults", COUNTED),
    Property("a deployment begins once, under a lease that lives, never beside itself: 2 claims, 3 faults", DEPLOYED),
    Property("a queued job is in the end run: 2 jobs, a fault, an agent that may stay away", IN_THE_END),
    Property("the same: 1 job, two faults", AFTER_TWO),
    Property("a queued deployment is in the end run, or waits for a person: a fault", DEPLOYED_IN_THE_END),
)

_BESIDE = "sandbox[0]==2"
MUTANTS = (
    Mutant("NO_TOKEN", "reports are believed by the attempt's id alone", THREE, "(r==t)"),
    Mutant("LATE_OUTCOME", "an outcome of a lost attempt still counts", THREE, "accepted"),
    Mutant("NO_ROW_LOCK", "a claim reads the queue and deletes from it in two steps", THREE, "accepted"),
    Mutant("NO_FENCE", "a new session leaves the older one's row", AT_ONCE, "<=1"),
    Mutant("NO_HELLO_NUMBER", "a Hello that was overtaken is heeded", THREE, "hold[i]"),
    Mutant("NO_NUMBERS", "a heartbeat is held to assignments it cannot know of", THREE, "hold[t]"),
    Mutant("NO_CREDIT", "Hello grants all slots, also those that are taken", THREE, "hold[0]"),
    Mutant("GIVE_UP_ANYWAY", "what is not acknowledged in time is given up though it has begun", THREE, "(row[t]==1)"),
    Mutant("NO_COUNTER", "the reaper does not repeat the counter that it saw", COUNTED, "seen[a]"),
    Mutant("RENEW_UNACKNOWLEDGED", "a session renews what its agent never had", IN_THE_END, "acceptance cycle"),
    Mutant("NO_REAPER", "nobody expires a session", IN_THE_END, "acceptance cycle"),
    Mutant("KEEP_SLOT", "a slot is not granted again", IN_THE_END, "acceptance cycle"),
    Mutant("NO_PERMIT", "a deployment begins without a permit", DEPLOYED, "(row[t]==2)"),
    Mutant("NO_NONCE", "a permit is given to the attempt, not to one supervisor", DEPLOYED, "begun"),
    Mutant("PERMIT_UNSTARTED", "a permit is given to what has not started", DEPLOYED, "(row[t]==2)"),
    Mutant("NO_DEADLINE", "the supervisor does not end its sandbox by itself", DEPLOYED, _BESIDE),
    Mutant("NO_MARGIN", "it does so only when the long lease is over", DEPLOYED, _BESIDE),
    Mutant("COUNT_FROM_ANSWER", "it counts from when the heartbeat was answered", DEPLOYED, _BESIDE),
    Mutant("BEGIN_LATE", "it begins a step without a look at the clock", DEPLOYED, "(row[t]==2)"),
    Mutant("RETRY_AT_ONCE", "a person may retry a lost deployment at once", DEPLOYED, _BESIDE),
)

_CUT_SHORT = ("Search not completed", "max search depth too small", "out of memory", "MEMLIM bound", "VECTORSZ")


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search came to. `broken`: why it says nothing; empty: it went to its end, or to a counter-example."""

    states: int
    seconds: float
    complaint: str
    broken: str


def search(world: tuple[str, ...], *, limit_mb: int = MEMORY_MB, depth: int = DEPTH) -> Searched:
    """Searches the model under these switches."""
    began = time.monotonic()
    fair = "LIVENESS" in world
    # No partial order reduction: nearly every variable is shared, and it costs more than it spares.
    kind = ["-DNFAIR=5"] if fair else ["-DSAFETY"]
    with tempfile.TemporaryDirectory(prefix="headrace-model-") as folder:
        built = _run(["spin", *(f"-D{each}" for each in world), "-a", str(MODEL)], folder)
        if built.returncode or not (Path(folder) / "pan.c").exists():
            return Searched(0, time.monotonic() - began, "", f"spin: {built.stdout.strip()}")
        built = _run(["gcc", "-O2", "-w", "-DNOREDUCE", f"-DMEMLIM={limit_mb}", *kind, "-o", "pan", "pan.c"], folder)
        if built.returncode:
            return Searched(0, time.monotonic() - began, "", f"gcc: {built.stdout.strip()}")
        # Where nothing moves any more the network may have lost all: no deadlock is an error here, `ltl` is for that.
        said = _run(["./pan", f"-m{depth}", *(["-a", "-f"] if fair else ["-E"])], folder).stdout
    return judged(said, time.monotonic() - began)


def judged(said: str, seconds: float) -> Searched:
    """What pan's report says."""
    states = re.search(r"(\d+(?:\.\d+e\+\d+)?) states, stored", said)
    errors = re.search(r"errors: (\d+)", said)
    count = int(float(states[1])) if states else 0
    if errors is None or not states:
        return Searched(count, seconds, "", f"pan did not finish: {said.strip()[-300:] or 'it said nothing'}")
    if int(errors[1]):
        found = re.search(r"pan:\d+: (.*)", said)
        return Searched(count, seconds, found[1] if found else "an error without a name", "")
    cut = [each for each in _CUT_SHORT if each in said]
    return Searched(count, seconds, "", f"the search was cut short: {cut[0]}" if cut else "")


def _run(command: list[str], folder: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, f"{command[0]} took longer than {PATIENCE_S} s")


def held(found: Searched) -> str:
    """Why a property does not hold; empty: it holds."""
    return found.broken or (f"it does not hold: {found.complaint}" if found.complaint else "")


def noticed(each: Mutant, found: Searched) -> str:
    """Why the check is none; empty: the mutant was noticed, by what should notice it."""
    if found.broken:
        return found.broken
    if not found.complaint:
        return "nothing goes wrong without this rule: the model does not check it"
    return "" if each.by in found.complaint else f"noticed by something else: {found.complaint}"


def main() -> int:
    """Runs all checks; returns 1 if one fails, 2 if the tools are missing."""
    parser = argparse.ArgumentParser(description="Checks the model of the lease protocol with spin.")
    parser.add_argument("--only", default="", metavar="WORD", help="only those whose line has this word")
    asked = parser.parse_args()
    missing = [name for name in ("spin", "gcc") if shutil.which(name) is None]
    if missing:
        print(
            f"the model is checked with spin and gcc; missing: {', '.join(missing)}; apt-get install spin gcc libc6-dev"
        )
        return 2
    began, failed = time.monotonic(), 0
    checks = [(each, f"holds: {each.sentence}", each.world) for each in PROPERTIES] + [
        (each, f"noticed: {each.switch}, {each.sentence}", (*each.world, each.switch)) for each in MUTANTS
    ]
    checks = [check for check in checks if asked.only in check[1]]
    with ThreadPoolExecutor(TOGETHER) as pool:
        searches = [(each, line, pool.submit(search, world)) for each, line, world in checks]
        for each, line, searching in searches:
            found = searching.result()
            why = held(found) if isinstance(each, Property) else noticed(each, found)
            failed += bool(why)
            print(
                f"{'FAILED' if why else 'ok':<7}{found.states:>11,} states {found.seconds:6.1f} s  {line}", flush=True
            )
            if why:
                print(f"       {why}", flush=True)
    print(f"{len(checks)} checks, {failed} failed, {time.monotonic() - began:.0f} s")
    return 1 if failed or not checks else 0


if __name__ == "__main__":
    sys.exit(main())
