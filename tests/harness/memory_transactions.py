"""How a call reaches the simulated database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def _nothing(call: str) -> None:
    del call


class Transactions:
    """How a call reaches the database: `before` and `after` the commit may wait, or raise StoreDown."""

    def __init__(
        self,
        before: Callable[[str], Awaitable[None]] = _nothing,
        after: Callable[[str], Awaitable[None]] = _nothing,
    ) -> None:
        self._before = before
        self._after = after

    async def run(self, body: Callable[[], T]) -> T:
        """Runs one transaction, named after its function."""
        name = body.__qualname__.split(".")[1]
        await self._before(name)
        result = body()
        await self._after(name)
        return result
