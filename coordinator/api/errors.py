"""Errors on the wire: one place turns a CoordinatorError into a status with `google.rpc` details.

Whatever else a servicer raises is a defect: it is logged whole, and the caller is told nothing of it.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from coordinator.blobs.store import BlobError, StoreFull, StoreUnavailable
from coordinator.errors import BadInput, CoordinatorError, StoreDown, TooMuch

_Unary = TypeVar("_Unary", bound=Callable[..., Awaitable[Any]])
_Streamed = TypeVar("_Streamed", bound=Callable[..., AsyncIterator[Any]])
_log = structlog.get_logger(__name__)

_STORE_RETRY_S = 1.0


def rpc(method: _Unary) -> _Unary:
    """Wraps a coroutine method `(self, request, context)`: unary, or one that writes to its context itself."""

    @functools.wraps(method)
    async def call(self: Any, request: Any, context: Any) -> Any:
        try:
            return await method(self, request, context)
        except (CoordinatorError, BlobError) as error:
            await abort(context, _ours(error))
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _defect(context, method.__qualname__, error)

    return call  # type: ignore[return-value]  # the wrapper has the method's own shape


def streamed(method: _Streamed) -> _Streamed:
    """Wraps an async generator method `(self, request, context)`."""

    @functools.wraps(method)
    async def call(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for response in method(self, request, context):
                yield response
        except (CoordinatorError, BlobError) as error:
            await abort(context, _ours(error))
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _defect(context, method.__qualname__, error)

    return call  # type: ignore[return-value]  # the wrapper has the method's own shape


def status_of(error: CoordinatorError) -> status_pb2.Status:
    """The canonical status: code, sentence, and what a client can act on."""
    status = status_pb2.Status(code=error.code.value[0], message=str(error))
    for detail in _details(error):
        status.details.add().Pack(detail)
    return status


def _details(error: CoordinatorError) -> list[Message]:
    details: list[Message] = []
    if isinstance(error, BadInput) and error.violations:
        bad = error_details_pb2.BadRequest()
        for each in error.violations:
            bad.field_violations.add(field=each.field, description=each.description)
        details.append(bad)
    if error.retry:
        info = error_details_pb2.RetryInfo()
        after_s = error.retry_after_s if isinstance(error, TooMuch) else _STORE_RETRY_S
        info.retry_delay.FromMilliseconds(round(after_s * 1000))
        details.append(info)
    return details


def _ours(error: CoordinatorError | BlobError) -> CoordinatorError:
    if isinstance(error, CoordinatorError):
        return error
    _log.warning("the blob store failed", exc_info=error)
    retry = isinstance(error, StoreUnavailable | StoreFull)
    return StoreDown(str(error)) if retry else CoordinatorError(str(error))


async def abort(context: Any, error: CoordinatorError) -> NoReturn:
    """Ends the call with the error's status."""
    status = rpc_status.to_status(status_of(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("unreachable: abort raises")


async def _defect(context: Any, name: str, error: Exception) -> NoReturn:
    _log.error("a call failed", rpc=name, exc_info=error)
    await abort(context, CoordinatorError("the coordinator failed; its log has the reason"))
