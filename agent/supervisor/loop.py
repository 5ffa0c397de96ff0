"""A loop over epoll: descriptors with what to do when they are ready, and one function that knows the time."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

_SLOWEST_MS: Final = 1000
"""The clock is looked at this often in any case: it goes on while the machine sleeps, and epoll does not."""

Ready = Callable[[int], None]
"""Called with the epoll events."""


class Loop:
    """Runs until `stop`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Ready] = {}
        self._on = True

    def watch(self, fd: int, ready: Ready, events: int = select.EPOLLIN) -> None:
        """Calls `ready` when `fd` is; again for the same one: with other events."""
        if fd in self._ready:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._ready[fd] = ready

    def unwatch(self, fd: int) -> None:
        """To be called before `fd` is closed; repeatable."""
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def watches(self, fd: int) -> bool:
        """Whether it is watched."""
        return fd in self._ready

    def stop(self) -> None:
        """Ends `run` after this round."""
        self._on = False

    def run(self, tick: Callable[[], int | None]) -> None:
        """`tick` is called each round; it returns for how many milliseconds it need not be called again."""
        self._on = True
        while self._on:
            wait = tick()
            wait = _SLOWEST_MS if wait is None else max(0, min(wait, _SLOWEST_MS))
            for fd, events in self._epoll.poll(wait / 1000):
                if (ready := self._ready.get(fd)) is not None:
                    ready(events)
