"""What holds for all tests."""

from __future__ import annotations

import signal

# A shell that runs the tests in the background has these ignored, and what is ignored stays so in every program that
# is started: Ctrl-C would be tried on commands that cannot hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
