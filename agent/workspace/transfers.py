"""Bytes between an agent and the blob store: signed requests, streamed, their digests checked at both ends."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import httpx
import tenacity

_CHUNK = 1 << 20
_QUOTED = 1000
"""Bytes of an answer that are read for its sentence."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One signed request that moves one object. `headers` are signed: they are sent as they are."""

    sha256: str
    size: int
    url: str
    method: str
    headers: Mapping[str, str] = field(default_factory=dict)
    present: bool = False
    """It is in the store already: nothing to upload."""


class TransferFailed(Exception):
    """The store or the way to it failed for good; the message is one sentence without the signed URL."""


class Stale(TransferFailed):
    """The signed request is no longer good: ask for a new one."""


class _Passing(Exception):
    """A failure that may go away: tried again."""


class Readable(Protocol):
    """What is uploaded. `chunks` begins anew with every call, for another try."""

    def chunks(self) -> Iterable[bytes]:
        """The bytes, in pieces of at most 1 MiB. Called in a thread."""
        ...


class Writable(Protocol):
    """Where a download goes."""

    def rewind(self) -> None:
        """Forgets all that was written: another try begins."""
        ...

    def write(self, piece: bytes) -> None:
        """Takes the next piece. Called in a thread."""
        ...


class Courier:
    """Moves objects, a few at a time. `client` bears the timeouts and the proxies."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        parallel: int = 4,
        tries: int = 5,
        wait: Callable[[tenacity.RetryCallState], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._room = asyncio.Semaphore(parallel)
        self._tries = tries
        self._wait = wait or tenacity.wait_exponential(multiplier=0.2, max=10)
        self._sleep = sleep

    async def upload(self, source: Readable, transfer: Transfer) -> None:
        """Sends the bytes of `source`, which must be those that the transfer names. Raises `TransferFailed`."""
        if not transfer.present:
            await self._again(lambda: self._upload_once(source, transfer))

    async def download(self, transfer: Transfer, sink: Writable) -> None:
        """Fetches an object into `sink`; returns only if size and digest are right. Raises `TransferFailed`."""
        await self._again(lambda: self._download_once(transfer, sink))

    async def _again(self, once: Callable[[], Awaitable[None]]) -> None:
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((_Passing, httpx.TransportError)),
            stop=tenacity.stop_after_attempt(self._tries),
            wait=self._wait,
            sleep=self._sleep,
            reraise=True,
        )
        async with self._room:
            try:
                async for attempt in retrying:
                    with attempt:
                        await once()
            except _Passing as error:
                raise TransferFailed(f"The blob store did not do it in {self._tries} tries: {error}.") from error
            except httpx.TransportError as error:
                said = str(error) or type(error).__name__
                raise TransferFailed(f"The blob store could not be reached in {self._tries} tries: {said}.") from error

    async def _upload_once(self, source: Readable, transfer: Transfer) -> None:
        async def body() -> AsyncIterator[bytes]:
            digest, size = hashlib.sha256(), 0
            pieces = iter(source.chunks())
            held = b""  # the last piece goes only when all are right: else the request stays incomplete
            while piece := await asyncio.to_thread(next, pieces, b""):
                if held:
                    yield held
                held = piece
                size += len(piece)
                digest.update(piece)
            if size != transfer.size or digest.hexdigest() != transfer.sha256:
                raise TransferFailed("A file changed while it was uploaded.")
            if held:
                yield held

        headers = {"Content-Length": str(transfer.size), **_without_length(transfer.headers)}
        async with self._client.stream(transfer.method, transfer.url, headers=headers, content=body()) as answer:
            # 412: the key holds the digest and is written once, so an earlier try of ours has put it there.
            if answer.status_code == httpx.codes.PRECONDITION_FAILED:
                return
            await _judge(answer)

    async def _download_once(self, transfer: Transfer, sink: Writable) -> None:
        await asyncio.to_thread(sink.rewind)
        digest, size = hashlib.sha256(), 0
        async with self._client.stream(transfer.method, transfer.url, headers=dict(transfer.headers)) as answer:
            await _judge(answer)
            async for piece in answer.aiter_raw(_CHUNK):
                size += len(piece)
                if size > transfer.size:
                    raise TransferFailed(f"The blob store sent more than the {transfer.size} bytes declared.")
                digest.update(piece)
                await asyncio.to_thread(sink.write, piece)
        if size != transfer.size or digest.hexdigest() != transfer.sha256:
            raise _Passing("the object did not have the size and digest declared")


def _without_length(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() != "content-length"}


async def _judge(answer: httpx.Response) -> None:
    code = answer.status_code
    if 200 <= code < 300:
        return
    said = _sentence((await anext(aiter(answer.aiter_bytes(_QUOTED)), b"")).decode(errors="replace"))
    answered = f"answered {code}: {said}" if said else f"answered {code}"
    if code in {401, 403}:
        raise Stale(f"The blob store refused the signed request: it {answered}")
    if code >= 500 or code in {408, 429}:
        raise _Passing(f"it {answered}")
    raise TransferFailed(f"The blob store {answered}")


def _sentence(body: str) -> str:
    """What a store says for people: our own endpoint a line of text, S3 the message in its XML, a proxy nothing."""
    message = re.search(r"<Message>([^<>]+)</Message>", body)
    text = message[1] if message else "" if body.lstrip().startswith("<") else body
    return text.strip().removesuffix(".")
