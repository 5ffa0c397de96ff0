"""Faults that the fake coordinator does on demand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2


@dataclass
class Fault:
    """Refuses a call, or cuts a stream after so many messages. `done_all_the_same`: only the answer is lost."""

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    sentence: str = "cut by the test"
    after_messages: int = 0
    done_all_the_same: bool = False
    details: tuple[Any, ...] = ()


def refuse(context: grpc.ServicerContext, fault: Fault) -> None:
    """Ends a call with the fault's status and details."""
    if fault.details:
        status = status_pb2.Status(code=fault.code.value[0], message=fault.sentence)
        for each in fault.details:
            packed = any_pb2.Any()
            packed.Pack(each)
            status.details.append(packed)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(fault.code, fault.sentence)


def bad_request(*violations: tuple[str, str]) -> error_details_pb2.BadRequest:
    """Details that name mistakes."""
    found = error_details_pb2.BadRequest()
    for where, sentence in violations:
        found.field_violations.add(field=where, description=sentence)
    return found
