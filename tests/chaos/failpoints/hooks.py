"""Lets a process die at a named place of the product, which knows nothing of it: nothing in it can be switched on.

A function of the product is wrapped before the ordinary start. The standard library alone is used here, for supervisors
import it too.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

BEFORE, AFTER = "before", "after"


class NoSuchPlace(Exception):
    """The product no longer has the function that a point names: it would never be hit, and nobody would know."""


@dataclass(frozen=True)
class Point:
    """Where to die: at a call of `place` (`module:name` or `module:Class.name`), before it begins or after it is done.

    `when` judges the call, by its arguments (with `self`) and, afterwards, its result. Of an async generator each item
    is a call: before it is given, and after whoever takes it has come back for the next. `writes`: the calls are those
    of the `write` of the last argument.
    """

    place: str
    at: str
    when: Callable[[tuple[Any, ...], dict[str, Any], Any], object] = lambda _args, _named, _result: True
    writes: bool = False


class Trap:
    """Dies at the call that `point` means, the `nth` time, after a line in the file `hits`."""

    def __init__(self, name: str, point: Point, nth: int, hits: str, note: object = None) -> None:
        self._line = {"point": name, "nth": nth, "pid": os.getpid(), "note": note}
        self._point = point
        self._left = nth
        self._hits = hits

    def set(self) -> None:
        """Wraps the function. Raises NoSuchPlace."""
        owner, attribute, found = resolve(self._point.place)
        wrapped: Any = self._wrapped(found.__func__ if isinstance(found, classmethod) else found)
        setattr(owner, attribute, classmethod(wrapped) if isinstance(found, classmethod) else wrapped)

    def _passed(self, at: str, args: tuple[Any, ...], named: dict[str, Any], result: Any = None) -> None:
        if at != self._point.at or not self._point.when(args, named, result):
            return
        self._left -= 1
        if self._left == 0:
            self._line["pid"] = os.getpid()
            file = os.open(self._hits, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.write(file, json.dumps(self._line).encode() + b"\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        passed = self._passed
        if self._point.writes:

            @functools.wraps(function)
            async def writing(*args: Any, **named: Any) -> Any:
                return await function(*args[:-1], _Context(args[-1], passed), **named)

            return writing
        if inspect.isasyncgenfunction(function):

            @functools.wraps(function)
            async def giving(*args: Any, **named: Any) -> AsyncIterator[Any]:
                async for item in function(*args, **named):
                    passed(BEFORE, args, named, item)
                    yield item
                    passed(AFTER, args, named, item)

            return giving
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def waiting(*args: Any, **named: Any) -> Any:
                passed(BEFORE, args, named)
                result = await function(*args, **named)
                passed(AFTER, args, named, result)
                return result

            return waiting

        @functools.wraps(function)
        def plain(*args: Any, **named: Any) -> Any:
            passed(BEFORE, args, named)
            result = function(*args, **named)
            passed(AFTER, args, named, result)
            return result

        return plain


class _Context:
    """A context of gRPC whose writes are looked at."""

    def __init__(self, inner: Any, passed: Callable[..., None]) -> None:
        self._inner = inner
        self._passed = passed

    async def write(self, message: Any) -> None:
        self._passed(BEFORE, (message,), {})
        await self._inner.write(message)
        self._passed(AFTER, (message,), {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def resolve(place: str) -> tuple[Any, str, Any]:
    """The owner of a function, its name there, and the function as it stands there. Raises NoSuchPlace."""
    module, _, path = place.partition(":")
    *owners, attribute = path.split(".")
    try:
        owner: Any = importlib.import_module(module)
        for name in owners:
            owner = getattr(owner, name)
        found = inspect.getattr_static(owner, attribute)
    except (ImportError, AttributeError) as error:
        raise NoSuchPlace(f"{place} is no function of the product any more: name the new one ({error})") from error
    if not callable(found) and not isinstance(found, classmethod):
        raise NoSuchPlace(f"{place} is no function")
    return owner, attribute, found
