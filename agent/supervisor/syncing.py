"""Syncs the spool in a thread of its own: a disk that is slow, or hangs, delays neither a deadline nor a kill."""

from __future__ import annotations

import os
import threading
from typing import Final

from agent.supervisor.loop import Loop
from agent.supervisor.spool import Spool, Sync

_REST_MS: Final = 20
_SHARE: Final = 4
_LONGEST_MS: Final = 1_000
"""Between two syncs rest 20 ms, or four times what the last one took, at most a second: the disk is the jobs' too. What
is told of a log is later by that. The outcome waits for none of it."""
_LEAVE_S: Final = 5.0


class Syncing:
    """One sync at a time, begun by `tick`; `loop` hears of its end."""

    def __init__(self, loop: Loop, spool: Spool) -> None:
        self._loop = loop
        self.spool = spool
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None
        self._sync: Sync | None = None
        self._error: OSError | None = None
        self._began: int | None = None
        self._next = 0
        loop.watch(self._bell, self._ended)

    def tick(self, now: int) -> int | None:
        """Begins a sync if it is time. Returns for how many milliseconds it is not; None: nothing is to be done."""
        if self._sync is not None:
            return None
        if self._began is not None:  # one has ended since
            self._next = now + min(_LONGEST_MS, max(_REST_MS, _SHARE * (now - self._began)))
            self._began = None
        if not self.spool.unsynced:
            return None
        if now < self._next and not self.spool.over:
            return self._next - now
        self._began = now
        self._sync = self.spool.begin_sync()
        self._thread = threading.Thread(target=self._run, args=(self._sync,), daemon=True)
        self._thread.start()
        return None

    def _run(self, sync: Sync) -> None:
        self._error = sync.run()
        os.eventfd_write(self._bell, 1)

    def _ended(self, _events: int) -> None:
        os.eventfd_read(self._bell)
        sync, self._sync = self._sync, None
        if sync is not None:
            self.spool.finish_sync(sync, self._error)

    def close(self) -> None:
        """Waits a moment for one that is under way: its files are about to be closed."""
        self._loop.unwatch(self._bell)
        if self._thread is not None:
            self._thread.join(_LEAVE_S)
