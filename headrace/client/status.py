"""From a gRPC status to the error tree: the one place where codes and `google.rpc` details are read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Protocol

from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from headrace import errors

_DETAILS = "grpc-status-details-bin"


class Failure(Protocol):
    """What `grpc.RpcError` and `grpc.aio.AioRpcError` have in common."""

    def code(self) -> StatusCode:
        """The canonical status."""

    def details(self) -> str | None:
        """The server's sentence, or gRPC's own."""

    def trailing_metadata(self) -> Iterable[Any] | None:
        """Pairs of name and value; one carries the serialised `google.rpc.Status`, if the server sent one."""


def error_of(failure: Failure, address: str) -> errors.HeadraceError:
    """The error that a failed call means; `address` is the one that was asked."""
    code, sentence = failure.code(), (failure.details() or "").strip()
    status = _status(failure)
    if status is not None and status.message:
        sentence = status.message
    match code:
        case StatusCode.INVALID_ARGUMENT | StatusCode.OUT_OF_RANGE:
            return errors.BadInput(sentence or "the coordinator refused the request", _violations(status))
        case StatusCode.NOT_FOUND:
            return errors.NotFound(sentence or "there is no such thing")
        case StatusCode.ALREADY_EXISTS | StatusCode.FAILED_PRECONDITION | StatusCode.ABORTED:
            return errors.Conflict(sentence or "it cannot be done as things are now")
        case StatusCode.UNAUTHENTICATED:
            return errors.NotAllowed(_with(sentence, "the coordinator does not know this token"))
        case StatusCode.PERMISSION_DENIED:
            return errors.NotAllowed(_with(sentence, "this token does not allow it"))
        case StatusCode.RESOURCE_EXHAUSTED:
            return _exhausted(status, sentence)
        case StatusCode.UNAVAILABLE | StatusCode.CANCELLED:
            return errors.Unreachable(address, _plain(sentence))
        case StatusCode.DEADLINE_EXCEEDED:
            return errors.Unreachable(address, "no answer in time")
        case StatusCode.UNIMPLEMENTED:
            return errors.Unsupported(f"this coordinator cannot do that: {sentence or 'it is older than the client'}")
        case StatusCode.INTERNAL if sentence.startswith("Received RST_STREAM"):
            return errors.Unreachable(address, "the connection was cut")
        case _:
            return errors.ServerFailed(f"the coordinator failed ({code.name}): {sentence or 'it gave no reason'}")


def _status(failure: Failure) -> status_pb2.Status | None:
    for key, value in failure.trailing_metadata() or ():
        if key == _DETAILS and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return None


def _violations(status: status_pb2.Status | None) -> tuple[errors.Violation, ...]:
    found = error_details_pb2.BadRequest()
    for detail in status.details if status else ():
        if detail.Unpack(found):
            return tuple(errors.Violation(each.field, each.description) for each in found.field_violations)
    return ()


def _exhausted(status: status_pb2.Status | None, sentence: str) -> errors.HeadraceError:
    """With RetryInfo it is a plea for patience; without, a limit that trying again does not move."""
    info = error_details_pb2.RetryInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            after = info.retry_delay.seconds + info.retry_delay.nanos / 1e9
            return errors.Busy(sentence or "the coordinator is busy", after)
    return errors.TooLarge(_own_words(sentence) or "the message is over the size limit")


def _own_words(sentence: str) -> str:
    """gRPC's own complaint about a message's size, as a sentence with its mend; anything else as it is."""
    sizes = re.search(r"larger than max \((\d+) vs\. (\d+)\)", sentence)
    if sizes is None:
        return sentence
    size, most = (int(number) / (1 << 20) for number in sizes.groups())
    return f"the request has {size:.1f} MiB, and {most:.0f} MiB are the limit: make the pipeline file smaller"


def _with(sentence: str, ours: str) -> str:
    return sentence or f"{ours}: check HEADRACE_TOKEN"


def _plain(sentence: str) -> str:
    """gRPC's long story of a failed connection, cut to what a person can use."""
    lower = sentence.lower()
    for sign, plain in (
        ("http/2", "it does not speak gRPC: is it the port of /metrics, or of something else?"),
        ("connection refused", "nobody listens there"),
        ("name resolution", "the name does not resolve"),
        ("domain name not found", "the name does not resolve"),
        ("dns", "the name does not resolve"),
        ("certificate", "its certificate is not trusted"),
        ("ssl", "it does not speak TLS as expected"),
        ("handshak", "it does not speak TLS as expected"),
        ("timed out", "no answer in time"),
        ("timeout", "no answer in time"),
        ("socket closed", "the connection was cut"),
        ("connection reset", "the connection was cut"),
        ("no such file", "nobody listens there"),
        ("unreachable", "no route to it"),
    ):
        if sign in lower:
            return plain
    return sentence or "the connection was cut"
