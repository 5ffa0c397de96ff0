"""The short form of a campaign: faults of all kinds while jobs run, and everything is right afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.campaign.conductor import play
from tests.chaos.campaign.fleet import SHORT
from tests.harness.docker_engine import NoEngineError, engine

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="kills processes of other uids, and makes a network namespace"),
]


def test_nothing_is_lost_doubled_or_left_whatever_breaks(tmp_path: Path) -> None:
    """The long form is `make chaos`. The seed orders the faults; which job each of them hits is left to chance."""
    tmp_path.chmod(0o755)
    try:
        with engine() as docker:
            report = play(tmp_path, SHORT, 1, docker)
    except NoEngineError as error:
        pytest.skip(str(error))
    print(report)
    assert not report.complaints, str(report)
