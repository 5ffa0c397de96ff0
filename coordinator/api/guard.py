"""The door of the gRPC server: who may call what is decided before a servicer sees the call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from coordinator.api.access import Tokens, allowed
from coordinator.api.errors import abort
from coordinator.errors import NotAllowed

_SENTENCE = "the token is missing or wrong: set HEADRACE_TOKEN to the one that the coordinator's operator gave you"


class Guard(grpc.aio.ServerInterceptor):
    """Refuses every call whose credential has no rule for the method."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Hands the call on, or answers it with one sentence."""
        metadata = dict(handler_call_details.invocation_metadata or ())
        caller = self._tokens.caller(metadata.get("authorization"))
        if allowed(handler_call_details.method, caller):
            return await continuation(handler_call_details)
        # Of the kind that waits for no message: whoever has no token would hold the call by saying nothing.
        return grpc.stream_unary_rpc_method_handler(_refuse)


async def _refuse(request: Any, context: Any) -> None:
    del request
    await abort(context, NotAllowed(_SENTENCE))
