"""The short form of a campaign: faults of all kinds while jobs run, and everything is right afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.chaos.campaign.conductor import play
from tests.chaos.campaign.fleet import SHORT

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="kills processes of other uids, and makes a network namespace"),
]


def test_nothing_is_lost_doubled_or_left_whatever_breaks() -> None:
    """The long form is `make chaos`. The seed orders the faults; which job each of them hits is left to chance."""
    folder = Path(tempfile.mkdtemp(prefix="hr-chaos-", dir="/tmp"))  # sockets have short paths
    try:
        folder.chmod(0o755)
        report = play(folder, SHORT, 1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(report)
    assert not report.complaints, str(report)
