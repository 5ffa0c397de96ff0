"""The first thing that runs of `headrace`."""

from __future__ import annotations

import subprocess
import sys

ONLY_THE_SDK = "import sys; sys.modules['typer'] = None; from headrace.__main__ import main; main()"


def test_where_only_the_sdk_is_installed_the_command_says_what_to_install() -> None:
    """`pip install headrace` puts a `headrace` on the PATH: a traceback would be the first that a person sees of it."""
    done = subprocess.run(
        [sys.executable, "-c", ONLY_THE_SDK, "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "headrace: the command line needs typer, which is not installed: pip install 'headrace[cli]'\n"
    )
