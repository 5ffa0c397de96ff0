"""A supervisor that dies at a point: `python -I -S supervisor.py POINT NTH HITS` and then what its `main.py` takes."""

import json
import os
import sys

if __name__ == "__main__":
    point, nth, hits, root, site, settings, ready = sys.argv[1:]
    sys.path += [root, site] if root != site else [root]
    from agent.supervisor.run import run
    from tests.chaos.failpoints.hooks import Trap
    from tests.chaos.failpoints.points import SUPERVISOR

    Trap(point, SUPERVISOR[point], int(nth), hits, note=json.loads(settings)["attempt"]).set()
    run(settings, int(ready))
    os._exit(0)
