"""Who waits for what, in this process. A bell only wakes: whoever hears it looks for itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator

from coordinator.dispatch.port import Wake

QUEUE, CANCELS, AGENTS, GROUPS, EXPANSIONS = "queue", "cancels", "agents", "groups", "expansions"


def run_topic(run_id: int) -> Hashable:
    """The topic of everything that changes in a run."""
    return ("run", run_id)


class LocalBells:
    """Wakes listeners of this replica, and hands on what other replicas should hear.

    `pass_on` is called for every ring of our own, and not for what was heard from others; `also` for both.
    """

    def __init__(
        self, pass_on: Callable[[Wake], None] = lambda _: None, also: Callable[[Wake], None] = lambda _: None
    ) -> None:
        # In the order in which they came: a simulation must wake them alike each time.
        self._listeners: dict[Hashable, dict[asyncio.Event, None]] = defaultdict(dict)
        self._pass_on = pass_on
        self._also = also

    def ring(self, wake: Wake) -> None:
        """A commit of this replica changed something."""
        if wake:
            self.heard(wake)
            self._pass_on(wake)

    def heard(self, wake: Wake) -> None:
        """Somebody changed something."""
        self._also(wake)
        if wake.queue:
            self._wake(QUEUE)
        if wake.cancels:
            self._wake(CANCELS)
        if wake.agents:
            self._wake(AGENTS)
        if wake.groups:
            self._wake(GROUPS)
        if wake.expansions:
            self._wake(EXPANSIONS)
        for run_id in wake.runs:
            self._wake(run_topic(run_id))

    def _wake(self, topic: Hashable) -> None:
        for event in self._listeners.get(topic, ()):
            event.set()

    @contextlib.contextmanager
    def listening(self, *topics: Hashable) -> Iterator[asyncio.Event]:
        """An event that is set whenever one of the topics rings; whoever waits clears it before it looks."""
        event = asyncio.Event()
        for topic in topics:
            self._listeners[topic][event] = None
        try:
            yield event
        finally:
            for topic in topics:
                self._listeners[topic].pop(event, None)
                if not self._listeners[topic]:
                    del self._listeners[topic]


async def heard_within(event: asyncio.Event, seconds: float) -> bool:
    """Waits for a bell, but no longer than the slow poll that stands behind it. Clears the event."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    finally:
        event.clear()
    return True
