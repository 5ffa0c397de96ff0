# All workers in one process: on a small machine that is kinder to the peer than ten interpreters.
import os
import sys
import time

from buildbot_worker.bot import Worker
from buildbot_worker.commands.fs import StatFile
from twisted.application import service
from twisted.python.log import FileLogObserver, ILogObserver

start = StatFile.start


def begin(self):
    """Says when the step begins at the worker, on the clock of the whole machine."""
    os.write(1, b"%.6f\n" % time.monotonic())  # sys.stdout is the log's here
    return start(self)


StatFile.start = begin

application = service.Application("buildbot-worker")
application.setComponent(ILogObserver, FileLogObserver(sys.stderr).emit)
for n in range(int(os.environ["BENCH_WORKERS"])):
    folder = os.path.join(os.environ["BENCH_FOLDER"], f"worker-{n}")
    os.makedirs(folder, exist_ok=True)
    Worker(
        "127.0.0.1", int(os.environ["BENCH_PORT"]), f"bench-{n}", os.environ["BENCH_PASSWORD"], folder,
        keepalive=600, maxdelay=1,
    ).setServiceParent(application)
