import os
import sys

from buildbot.master import BuildMaster
from twisted.application import service
from twisted.python.log import FileLogObserver, ILogObserver

# upgrade-master looks for the next line, quotes and all.
application = service.Application('buildmaster')
application.setComponent(ILogObserver, FileLogObserver(sys.stderr).emit)
BuildMaster(os.environ["BENCH_FOLDER"], "master.cfg", umask=None).setServiceParent(application)
