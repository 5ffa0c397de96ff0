"""The blob endpoint of the `file://` store: GET, HEAD and PUT of single objects, each under its signed address.

It lies on a port of its own and serves nothing else: what jobs made is handed out as attachments that no browser
shows, far from the pages and their cookies. Answers to refused requests are one sentence of plain text.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from coordinator.blobs.folder import ObjectFolder
from coordinator.blobs.keys import BadKey
from coordinator.blobs.store import BlobCorrupt, BlobError, BlobExists, StoreFull, content_disposition
from coordinator.blobs.urls import PATH, BadSignature, Grant, UrlSigner, upload_headers

_READ = 1 << 18
_SLOWEST = 64 << 10
"""Bytes a second of an upload, at least: a place among the uploads is not held for a byte a minute."""
_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "sandbox; default-src 'none'",
    "cross-origin-resource-policy": "same-site",
    "referrer-policy": "no-referrer",
    "cache-control": "private, no-transform",
}


class _Refused(Exception):
    """Ends a request with a status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


def blob_endpoint(
    folder: ObjectFolder,
    signer: UrlSigner,
    clock: Callable[[], float],
    uploads_at_once: int = 64,
    patience_s: float = 60.0,
) -> Starlette:
    """Make the ASGI application. `clock` gives unix seconds and is the one that the addresses were signed by.

    More uploads than `uploads_at_once` wait for their turn, so memory stays bounded (2 MiB an upload).
    One that stands still for `patience_s`, or comes slower than 64 KiB/s by more than that, is ended.
    """
    room = asyncio.Semaphore(uploads_at_once)

    async def serve(request: Request) -> Response:
        try:
            grant = _grant(request, signer, clock())
            if grant.verb == "PUT":
                async with room:
                    return await _put(request, folder, grant, patience_s)
            return await _get(request, folder, grant)
        except _Refused as refused:
            return PlainTextResponse(f"{refused.sentence}\n", refused.status, headers=_HEADERS)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it

    return Starlette(routes=[Route(PATH + "{key:path}", serve, methods=["GET", "PUT"])])


def _grant(request: Request, signer: UrlSigner, now: float) -> Grant:
    try:
        return signer.check(request.method, request.path_params["key"], request.query_params.multi_items(), now)
    except BadSignature as error:
        raise _Refused(403, str(error)) from error
    except BadKey as error:
        raise _Refused(400, str(error)) from error


async def _put(request: Request, folder: ObjectFolder, grant: Grant, patience_s: float) -> Response:
    for name, value in upload_headers(grant.size, grant.sha256).items():
        if request.headers.getlist(name) != [value]:
            raise _Refused(403, f"the header {name} must be sent as it was signed")
    body = _body(request, patience_s, grant.size)
    try:
        await folder.write(grant.key, body, grant.size, grant.sha256)
    except BlobExists as error:
        if not await folder.same(grant.key, grant.size, grant.sha256):
            raise _Refused(412, str(error)) from error
    except BlobCorrupt as error:
        raise _Refused(400, str(error)) from error
    except StoreFull as error:
        async for _ in body:  # so that the answer is read, not a broken connection
            pass
        raise _Refused(507, str(error)) from error
    except BlobError as error:
        raise _Refused(500, str(error)) from error
    return Response(status_code=204, headers=_HEADERS)


async def _body(request: Request, patience_s: float, size: int) -> AsyncIterator[bytes]:
    loop, chunks = asyncio.get_running_loop(), request.stream()
    end = loop.time() + size / _SLOWEST + patience_s
    while True:
        try:
            async with asyncio.timeout_at(min(end, loop.time() + patience_s)):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            slow = f"the file came slower than {_SLOWEST >> 10} KiB/s"
            what = slow if loop.time() >= end else f"no byte came for {patience_s:.0f} s"
            raise _Refused(408, f"{what}: send it again") from None
        yield chunk


async def _get(request: Request, folder: ObjectFolder, grant: Grant) -> Response:
    try:
        handle = await asyncio.to_thread(_open, folder.path(grant.key))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise _Refused(404, "there is no such object") from None
    size = os.fstat(handle).st_size
    try:
        start, end = _range(request.headers.get("range", ""), size)
    except _Refused:
        os.close(handle)
        raise
    headers = _HEADERS | {
        "accept-ranges": "bytes",
        "content-disposition": content_disposition(grant.name),
        "content-length": str(end - start),
    }
    partial = (start, end) != (0, size)
    if partial:
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    status = 206 if partial else 200
    if request.method == "HEAD":
        os.close(handle)
        return Response(status_code=status, headers=headers, media_type="application/octet-stream")
    return StreamingResponse(_read(handle, start, end), status, headers, media_type="application/octet-stream")


def _open(path: Path) -> int:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    if path.is_dir():
        os.close(handle)
        raise IsADirectoryError(path)
    return handle


async def _read(handle: int, start: int, end: int) -> AsyncIterator[bytes]:
    with os.fdopen(handle, "rb", buffering=0) as file:
        while start < end:
            chunk = await asyncio.to_thread(os.pread, file.fileno(), min(_READ, end - start), start)
            if not chunk:
                return  # cut short by somebody on this machine: the length does not match, the client sees it
            start += len(chunk)
            yield chunk


def _range(header: str, size: int) -> tuple[int, int]:
    """Return the bytes asked for, `end` not included. What is not one plain range is answered with everything."""
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip())
    if found is None or found.group(0) == "bytes=-":
        return 0, size
    first, last = found.groups()
    start, end = (int(first), int(last) + 1 if last else size) if first else (max(0, size - int(last)), size)
    if first and last and int(last) < int(first):
        return 0, size  # not a valid range: as if it were not there
    if start >= size:
        raise _Refused(416, f"the object has {size} bytes")
    return start, min(end, size)
