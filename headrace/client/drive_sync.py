"""The blocking driver: carries the steps of a flow out on plain `grpc`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import grpc

from headrace.client import flows, transfers
from headrace.client.channel import CALL_TIMEOUT, Connection, Endpoints, options, stub
from headrace.client.flows import END, Flow, Step
from headrace.errors import HeadraceError

Result = TypeVar("Result")


class SyncDriver:
    """Channels to the endpoints of one connection, made when first used."""

    def __init__(self, connection: Connection, sleep: Callable[[float], object]) -> None:
        self.endpoints = Endpoints(connection)
        self.sleep = sleep
        self._connection = connection
        self._channels: dict[int, Any] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Ends every call and connection. May be repeated."""
        with self._lock:
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()

    def perform(self, flow: Flow[Result]) -> Result:
        """Carries a flow out to its end and returns its result."""
        hand = _Hand(self)
        try:
            step = next(flow)
            while True:
                try:
                    reply = hand.carry_out(step)
                except HeadraceError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            result: Result = end.value
            return result
        finally:
            hand.close()

    def iterate(self, flow: Flow[None]) -> Generator[Any, None, None]:
        """Carries a flow out and hands on what it gives."""
        hand = _Hand(self)
        try:
            step = next(flow)
            while True:
                if isinstance(step, flows.Give):
                    yield step.value
                    step = next(flow)
                    continue
                try:
                    reply = hand.carry_out(step)
                except HeadraceError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration:
            return
        finally:
            hand.close()

    def channel(self) -> Any:
        """The channel to the endpoint in use."""
        with self._lock:
            at = self.endpoints.at
            if at not in self._channels:
                address = self.endpoints.current
                self._channels[at] = (
                    grpc.secure_channel(address.target, self._connection.credentials(), options(address))
                    if address.tls
                    else grpc.insecure_channel(address.target, options(address))
                )
            return self._channels[at]


class _Hand:
    """Carries out the steps of one flow: it holds that flow's stream."""

    def __init__(self, driver: SyncDriver) -> None:
        self._driver = driver
        self._endpoints = driver.endpoints
        self._stream: Any = None
        self._at = 0

    def close(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    def carry_out(self, step: Step) -> Any:
        match step:
            case flows.Call(method, request):
                self._at = self._endpoints.at
                call = stub(self._driver.channel().unary_unary, method)
                metadata = self._endpoints.metadata
                return self._answer(lambda: call(request, metadata=metadata, timeout=CALL_TIMEOUT))
            case flows.Open(method, request):
                self.close()
                self._at = self._endpoints.at
                call = stub(self._driver.channel().unary_stream, method)
                self._stream = call(request, metadata=self._endpoints.metadata)
            case flows.Next():
                return self._answer(lambda: next(self._stream, END))
            case flows.Cut(sentence):
                raise self._endpoints.cut(self._at, sentence)
            case flows.Wait(seconds):
                self._driver.sleep(seconds)
            case flows.Fetch(transfer, target, executable):
                transfers.fetch(transfer, target, executable)
            case flows.Send(transfer, origin):
                transfers.send(transfer, origin)
            case flows.Give():
                raise AssertionError("a flow that is performed gives nothing on the way")
        return None

    def _answer(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except grpc.RpcError as failure:
            raise self._endpoints.failed(self._at, failure) from failure
