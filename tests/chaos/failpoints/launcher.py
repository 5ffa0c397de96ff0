"""Starts a daemon again and again, each life with a point at which it dies: `python -m tests.chaos.failpoints.launcher
coordinator HITS ARGUMENTS…`.

It is asked on standard input, a JSON line a life: `{"point": NAME or "", "nth": N, "supervisors": [[NAME, N], …]}`.
It says on standard output `{"pid": …}`, what the daemon says when it is ready, and `{"code": …}` at its end. All is
imported once and every life is a fork, so that a second is enough for one.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos.failpoints.hooks import Trap
from tests.chaos.failpoints.points import AGENT, COORDINATOR

_POINTS = {"coordinator": COORDINATOR, "agent": AGENT}
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serves lives until standard input ends."""
    kind, hits, *arguments = sys.argv[1:]
    _die_with_parent()
    for module in (f"{kind}.app", "headrace.cli.main"):
        importlib.import_module(module)
    while line := sys.stdin.readline():
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _live(kind, hits, arguments, asked)
        _say({"pid": pid})
        _say({"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])})


def _live(kind: str, hits: str, arguments: Sequence[str], asked: dict[str, Any]) -> None:
    """One life. Never returns."""
    code: object = 70
    try:
        _die_with_parent()
        os.setsid()
        ready = os.dup(1)
        with open(os.devnull, "rb") as null:  # noqa: PTH123 - as small as can be
            os.dup2(null.fileno(), 0)
        os.dup2(2, 1)
        if asked["point"]:
            Trap(asked["point"], _POINTS[kind][asked["point"]], asked["nth"], hits).set()
        if asked.get("supervisors"):
            _arm_supervisors(hits, asked["supervisors"])
        sys.argv = ["headrace", kind, *arguments, "--ready-fd", str(ready)]
        from headrace.cli.main import main as command_line

        command_line()
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 70)


def _arm_supervisors(hits: str, points: Sequence[tuple[str, int]]) -> None:
    """Every other supervisor of this agent dies at the next of these points; a job is tried again in between. Those
    that did not come to theirs (their attempt was given up before) have others in their place.
    """
    from agent.supervisor import client

    argv, left, turn = client._argv, list(points), [0]
    program = str(Path(__file__).with_name("supervisor.py"))

    def armed(*words: Any) -> list[str]:
        python, isolated, plain, _, *rest = argv(*words)
        turn[0] += 1
        if not left:
            left.extend((name, 1) for name in _missing(hits, points))
        if not left or turn[0] % 2 == 0:
            return argv(*words)
        name, nth = left.pop(0)
        return [python, isolated, plain, program, name, str(nth), hits, *rest]

    client._argv = armed


def _missing(hits: str, points: Sequence[tuple[str, int]]) -> list[str]:
    died = Counter(json.loads(line)["point"] for line in Path(hits).read_text().splitlines())
    return list((Counter(name for name, _ in points) - died).elements())


def _say(what: dict[str, int]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


if __name__ == "__main__":
    main()
