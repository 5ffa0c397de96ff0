"""What an agent fetches, and what not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from agent.problems import JobProblem
from agent.source import Sources
from agent.workspace.git import Git
from agent.workspace.mirror import Mirrors
from agent.workspace.transfers import Courier
from headrace.v1 import common_pb2 as pb


async def test_a_file_url_is_no_way_to_read_the_agents_machine(tmp_path: Path) -> None:
    """An agent may be root: a client would read any repository of it, mirrors of other projects among them."""
    unused = cast("Any", None)
    git = Git(tmp_path, {})
    sources = Sources(git, Mirrors(git, tmp_path / "mirrors"), cast("Courier", unused), local=False, lfs_limit=0)
    spec = pb.JobSpec(
        project="p",
        source=pb.Source(url="FILE:///srv/secret.git", commit="0" * 40),
        checkout=pb.Checkout(enabled=True, depth=1),
    )
    with pytest.raises(JobProblem, match=r"does not fetch .*secret.git from its own machine"):
        await sources.make(spec, tmp_path / "w" / "tree", blobs=unused, owner=None, is_host=False)
