"""`headrace up`: the embedded coordinator and an agent, until somebody ends them."""

from __future__ import annotations

import os
import select
import shlex
from pathlib import Path

from headrace.cli import output
from headrace.cli.embedded import Embedded, Endpoint, Owner
from headrace.cli.settings import Settings
from headrace.errors import Conflict, ServerFailed


def stand(settings: Settings, *, listen: str, http_listen: str, as_json: bool) -> int:
    """Starts, says where, and waits for INT or TERM; returns the exit code."""
    embedded = Embedded(settings.state, settings.environment)
    with embedded.live_or_own(with_agent=True, may_grow=True, listen=listen, http=http_listen) as owner:
        if isinstance(owner, Endpoint):
            raise Conflict(f"a coordinator is running here already, at {owner.address} (process {owner.pid})")
        if as_json:
            output.print_event({"address": owner.endpoint.address, "http": owner.endpoint.http, "pid": os.getpid()})
        else:
            output.say(_welcome(owner))
        try:
            return _wait(owner)
        except KeyboardInterrupt:
            output.note("stopping: running jobs are ended first")
            return 0


def _welcome(owner: Owner) -> str:
    """The addresses, and whole command lines for another agent and for a client.

    The credentials are files: a command line can be read by everybody on the machine.
    """
    address, tokens = owner.endpoint.address, owner.state / "coordinator/tokens"
    agent = f"headrace agent --url {address} --name second --data-dir {_quoted(owner.state / 'agent-second')}"
    return f"""\
coordinator  {address}
http         {owner.endpoint.http} (/metrics, /healthz, /readyz)
agent        local

another agent:
  HEADRACE_TOKEN=$(cat {_quoted(tokens / "agent")}) {agent}
a client (commands of the same user find it by themselves):
  HEADRACE_URL={address} HEADRACE_TOKEN=$(cat {_quoted(tokens / "client")}) headrace runs

Ctrl-C stops it"""


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _wait(owner: Owner) -> int:
    """Until a signal comes or a daemon dies."""
    descriptors = [os.pidfd_open(pid) for pid in owner.processes.pids()]
    try:
        select.select(descriptors, [], [])
    finally:
        for each in descriptors:
            os.close(each)
    raise ServerFailed(f"the {owner.processes.dead() or 'daemon'} has died: see {owner.processes.logs}")
