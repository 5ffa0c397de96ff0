"""`make demo` in a fresh clone: the first thing that a newcomer does."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.scene import Scene, User
from tests.harness.installation import PLAIN_UID, NoInstallationError, clone, public_python
from tests.harness.sandbox_world import cannot

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user too"),
]


@pytest.mark.parametrize("who", ["root", "plain user"])
def test_make_demo_in_a_fresh_clone_ends_with_an_artifact(leftovers, who, capsys):
    """Exit 0, a summary, and the path of a wheel that is there."""
    uid = None if who == "root" else PLAIN_UID
    scene = Scene(leftovers.scratch, User(uid=uid))
    target = scene.folder / "headrace"
    clone(target, uid=uid)
    words = []
    if uid is not None:
        try:
            words = [f"PYTHON={public_python()}"]
        except NoInstallationError as error:
            cannot(str(error))
    began = time.monotonic()
    try:
        done = scene.command(["make", "demo", *words], target, PATH=path(uid)).end(800)
    finally:
        scene.close()
    took = time.monotonic() - began
    assert done.code == 0, done.out[-4000:] + done.err[-4000:]
    found = re.search(r"^artifact dist \(1 file, .*\): (/.*)$", done.out, re.MULTILINE)
    assert found, done.out[-2000:]
    (wheel,) = Path(found[1]).rglob("*.whl")
    assert wheel.name.startswith("headrace-")
    assert wheel.stat().st_size > 100_000
    assert re.search(r"^run 1 passed in ", done.out, re.MULTILINE)
    with capsys.disabled():
        sys.stdout.write(f"\n{json.dumps({'make demo': who, 's': round(took, 1)})}\n")


def path(uid: int | None) -> str:
    """Where programs are for that user: not in root's home."""
    return os.environ["PATH"] if uid is None else "/usr/local/bin:/usr/bin:/bin"
