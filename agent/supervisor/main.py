"""The supervisor's start: `python -I -S main.py ROOT SITE SETTINGS READY`.

`ROOT` and `SITE` are the folders of this package and of zstandard, for nothing else is on the path; `SETTINGS` is
JSON; `READY` is the number of a descriptor that is written to and closed once the socket answers. This file itself
stays small: it is compiled anew at each start.
"""

import os
import sys

if __name__ == "__main__":
    sys.path += [sys.argv[1], sys.argv[2]] if sys.argv[1] != sys.argv[2] else [sys.argv[1]]
    from agent.supervisor.run import run

    run(sys.argv[3], int(sys.argv[4]))
    os._exit(0)  # nothing is left to tidy, and the interpreter would take its time
