"""The model of the lease protocol: searched to the end by spin, and each rule taken out once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.check_model import ALIKE, MODEL, MUTANTS, Mutant, held, judged, noticed, search

ROOT = Path(__file__).resolve().parents[2]
WHOLE = "State-vector 164 byte, depth reached 659, errors: 0\n   410355 states, stored\n"


@pytest.mark.timeout(1200)
def test_the_protocol_holds_and_no_rule_of_it_can_be_left_out() -> None:
    """Every history of a small world, not only those that a seed happens to play."""
    done = subprocess.run(
        [sys.executable, "scripts/check_model.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nok ") + done.stdout.startswith("ok ") == done.stdout.count("states")


def test_a_search_that_is_cut_short_proves_nothing() -> None:
    """It ends with no error found, and that is all that it has in common with a proof."""
    found = search(ALIKE, depth=50)
    assert "cut short" in held(found)
    found = search(ALIKE, limit_mb=150)
    assert "cut short" in held(found)


def test_a_check_that_finds_nothing_without_the_rule_is_red() -> None:
    """So is one that finds something else: a mutant that cannot even be built goes wrong by itself."""
    mutant = Mutant("NO_TOKEN", "", ALIKE, "(r==t)")
    assert "does not check it" in noticed(mutant, judged(WHOLE, 1.0))
    other = "pan:1: assertion violated credit[a]<=1 (at depth 3)\n" + WHOLE.replace("errors: 0", "errors: 1")
    assert "something else" in noticed(mutant, judged(other, 1.0))
    assert "does not hold" in held(judged(other, 1.0))
    assert "did not finish" in noticed(mutant, judged("", 1.0))


def test_every_switch_of_the_model_takes_a_rule_out_that_is_checked() -> None:
    """A switch that nobody tries may have stopped to mean anything."""
    known = {mutant.switch for mutant in MUTANTS}
    worlds = {"AT_MOST_ONCE", "COUNTERS", "FAULTS", "LIVENESS", "ATTEMPTS", "JOBS"}
    lines = MODEL.read_text("utf-8").splitlines()
    asked = {line.split()[1] for line in lines if line.startswith(("#ifdef", "#ifndef"))}
    asked |= {
        word.split(")")[0]
        for line in lines
        if line.startswith(("#if ", "#elif"))
        for word in line.split("defined(")[1:]
    }
    assert asked - worlds == known


def test_who_has_no_spin_is_told_how_to_get_it(tmp_path: Path) -> None:
    """One sentence, not a traceback."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/check_model.py"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout == (
        "the model is checked with spin and gcc; missing: spin, gcc; apt-get install spin gcc libc6-dev\n"
    )
