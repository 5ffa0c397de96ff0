"""Puts a supervisor together and runs it to its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

from agent.supervisor import guard


def run(settings: str, ready: int) -> None:
    """`settings`: the JSON that the client makes of its `SupervisorSettings`; `ready`: see main.py."""
    if os.fork():
        os._exit(0)  # who started us has no child to collect, and may itself end at any time
    asked = json.loads(settings)
    for signum in (signal.SIGHUP, signal.SIGPIPE, signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # only root may: the job is to be killed for memory before its supervisor is
        Path("/proc/self/oom_score_adj").write_text("-900")
    keeper = guard.begin() if asked["guard"] else None
    _serve(asked, ready, keeper)


def _serve(asked: dict[str, object], ready: int, keeper: guard.Guard | None) -> None:
    # Late on purpose: the guard is forked before anything large is there.
    from agent.supervisor.attempt import Attempt
    from agent.supervisor.clocks import Clocks
    from agent.supervisor.deadline import Terms
    from agent.supervisor.loop import Loop
    from agent.supervisor.server import Server
    from agent.supervisor.spool import Spool
    from agent.supervisor.syncing import Syncing
    from agent.supervisor.writer import LogWriter

    folder = Path(str(asked["folder"]))
    terms = Terms(**asked["terms"])._replace(heard=Clocks.boot())  # type: ignore[arg-type]  # JSON of the client's own
    os.umask(0o022)
    loop = Loop()
    try:
        seed = int.from_bytes(os.urandom(4), "little")
        spool = Spool(Path(str(asked["spool"])), int(str(asked["limit"])), seed=seed)
    except OSError as error:
        raise SystemExit(f"the spool {asked['spool']} cannot be written: {error.strerror}") from None
    hold_ms, most = int(str(asked["hold_ms"])), int(str(asked["log_limit"]))
    writer = LogWriter(spool, Clocks.wall, Clocks.boot, hold_ms=hold_ms, most=most)
    attempt = Attempt(loop, folder, writer, terms, keeper)
    syncing = Syncing(loop, spool)
    server = Server(loop, folder, attempt, writer, syncing)
    with contextlib.suppress(OSError):  # the agent is gone meanwhile: the next one finds us
        os.write(ready, b"ready")
    os.close(ready)
    loop.run(server.tick)
    attempt.close()
    syncing.close()
    spool.close()
    if keeper is not None:
        keeper.leave()
    server.close()  # last: the agent takes the end of its connection for the end of all this
