"""Where the command line begins: `headrace`, and `python -m headrace`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command line; where only the SDK is installed, says what is missing and ends with 3."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else gRPC's core tells of each idle connection that closes
    try:
        from headrace.cli.main import main as command_line
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("headrace"):
            raise
        sys.stderr.write(
            f"headrace: the command line needs {error.name}, which is not installed: pip install 'headrace[cli]'\n"
        )
        sys.exit(3)
    command_line()


if __name__ == "__main__":
    main()
