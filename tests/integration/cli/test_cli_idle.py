"""What a command that lives for long prints of connections that close: nothing."""

from __future__ import annotations

import subprocess
import sys

_IDLE = """
import contextlib, sys
from headrace.__main__ import main
sys.argv = ["headrace", "--version"]
with contextlib.suppress(SystemExit):
    main()
import grpc
from concurrent import futures
server = grpc.server(futures.ThreadPoolExecutor(1), options=[("grpc.max_connection_idle_ms", 1000)])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    closed = futures.Future()
    grpc.channel_ready_future(channel).result(20)
    channel.subscribe(lambda state: state is grpc.ChannelConnectivity.IDLE and closed.set_result(None))
    closed.result(20)
server.stop(None).wait()
"""


def test_a_connection_that_is_closed_because_it_is_idle_is_nothing_to_tell_a_person_of():
    """One without a call is closed after a minute, and gRPC's core would write a line of its own each time."""
    done = subprocess.run([sys.executable, "-c", _IDLE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
