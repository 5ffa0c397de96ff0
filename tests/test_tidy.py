"""House style as a test: what a linter does not know of, each with what to do instead."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("headrace", "coordinator", "agent", "tests", "benchmarks", "scripts")
GENERATED = ROOT / "headrace" / "v1"
MOST_LINES = 400
MOST_FUNCTION_LINES = 60

# A call, and what stands in its place. Only in code that runs in life, not in tests.
BANNED_CALLS = {
    "time.time": "pass a clock in: only a composition root knows the real one",
    "datetime.now": "pass a clock in",
    "random.random": "pass a random.Random in",
    "asyncio.get_event_loop": "asyncio.get_running_loop",
    "os.system": "asyncio.create_subprocess_exec with a list",
    "subprocess.getoutput": "asyncio.create_subprocess_exec with a list",
}
BANNED_NAMES = ("utils.py", "helpers.py", "helper.py", "common.py", "misc.py", "manager.py", "handlers.py")

# Words about how the work is organised: the project speaks of itself alone.
BANNED_WORDS = ("TODO", "FIXME", "XXX")


def tracked(*suffixes: str) -> list[Path]:
    """The files of this checkout that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [ROOT / name for name in listed if name.endswith(suffixes) and (ROOT / name).is_file()]


SOURCES = [
    path for path in tracked(".py") if path.relative_to(ROOT).parts[0] in ROOMS and GENERATED not in path.parents
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_fits_in_one_reading(path):
    """Files that only grow are how others got their monoliths: split it by what it is about."""
    assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_function_fits_on_a_screen(path):
    """What does not fit on a screen does more than one thing."""
    tree = ast.parse(path.read_text("utf-8"))
    long = [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > MOST_FUNCTION_LINES
    ]
    assert not long


@pytest.mark.parametrize("path", [p for p in SOURCES if "tests" not in p.relative_to(ROOT).parts], ids=name_of)
def test_a_banned_call_has_a_replacement(path):
    """Time and randomness are arguments; nothing goes through a shell."""
    if path.relative_to(ROOT).parts[0] in ("scripts", "benchmarks"):
        return
    found = {}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            call = ast.unparse(node.func)
            if call in BANNED_CALLS:
                found[f"{call} in line {node.lineno}"] = BANNED_CALLS[call]
    assert not found


def test_no_file_is_named_for_being_useful():
    """A newcomer finds a file by its name: `utils` says nothing."""
    assert not [name_of(path) for path in SOURCES if path.name in BANNED_NAMES]


def test_nothing_is_put_off_in_the_code():
    """Work that is put off stands in the tracker, not in a comment that nobody reads."""
    found = []
    for path in SOURCES:
        if path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            _, hash_sign, comment = line.partition("#")
            if hash_sign and any(word in comment.split() or f"{word}:" in comment for word in BANNED_WORDS):
                found.append(f"{name_of(path)}:{number}")
    assert not found


def test_every_file_is_small_enough_to_be_source():
    """What is large is data, and is made or fetched, not committed."""
    large = [name_of(path) for path in tracked("") if path.stat().st_size > 500_000]
    assert not large
