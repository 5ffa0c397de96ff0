"""Signed requests carried out: one object, one verb, its length and digest checked. Standard library only.

Proxies are those of the process, as for every HTTP client of Python, but never for loopback. Redirects are not
followed: what is signed is one address.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from headrace.client.address import is_loopback
from headrace.errors import Corrupt, HeadraceError, NotFound, ServerFailed, Unreachable
from headrace.v1 import common_pb2

_CHUNK = 1 << 20
_TIMEOUT = 60.0
_PRESENT = 412
"""`If-None-Match: *` failed: the object, written once, is there."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(  # noqa: PLR0917  # the signature is urllib's
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        """None: the answer is an error then."""


def _opener(url: str) -> urllib.request.OpenerDirector:
    if urlsplit(url).scheme not in {"http", "https"}:
        raise Corrupt("the coordinator signed an address that is neither http nor https")
    proxies: list[urllib.request.BaseHandler] = []
    if is_loopback(urlsplit(url).hostname or ""):
        proxies.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*proxies, _NoRedirects())


def fetch(transfer: common_pb2.Transfer, target: Path, executable: bool) -> None:  # noqa: FBT001  # a step's field
    """Writes the object to `target`, under a temporary name until digest and length have proved right.

    Raises:
        Corrupt: what came is not what was announced.
        Unreachable: the store did not answer, or the signature has grown old (ask for another).
        NotFound: the object is gone.

    """
    request = urllib.request.Request(transfer.url, headers=dict(transfer.headers), method=transfer.method)  # noqa: S310  # the scheme is checked in _opener
    part = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _opener(transfer.url).open(request, timeout=_TIMEOUT) as response, part.open("xb") as file:
            _copy(response, file, transfer, target)
        part.chmod(0o755 if executable else 0o644)
        part.replace(target)
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _failure(error, transfer.url) from error
    except OSError as error:
        raise Corrupt(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _copy(response: IO[bytes], file: IO[bytes], transfer: common_pb2.Transfer, target: Path) -> None:
    digest, size = hashlib.sha256(), 0
    while chunk := response.read(_CHUNK):
        size += len(chunk)
        if size > transfer.size:
            raise Corrupt(f"{target.name}: more than the {transfer.size} bytes announced came")
        digest.update(chunk)
        file.write(chunk)
    if size < transfer.size:  # a cut connection looks like an end here
        raise ConnectionError(f"{size} of {transfer.size} bytes came")
    if digest.hexdigest() != transfer.sha256.lower():
        raise Corrupt(f"{target.name}: the digest does not match, the file was damaged on its way")


def send(transfer: common_pb2.Transfer, origin: Path) -> None:
    """Uploads a file.

    Raises:
        Unreachable: the store did not answer, or the signature has grown old.
        ServerFailed: the store refused it.

    """
    headers = {"Content-Length": str(os.stat(origin).st_size)} | dict(transfer.headers)  # noqa: PTH116  # as signed
    try:
        with origin.open("rb") as file:
            request = urllib.request.Request(transfer.url, file, headers, method=transfer.method)  # noqa: S310
            with _opener(transfer.url).open(request, timeout=_TIMEOUT):
                pass
    except urllib.error.HTTPError as error:
        if error.code != _PRESENT:
            raise _failure(error, transfer.url) from error
        error.close()
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _failure(error, transfer.url) from error


def _failure(error: Exception, url: str) -> HeadraceError:
    """What a failed HTTP request means. The address is shown without its query: that is the signature."""
    parts = urlsplit(url)
    where = f"{parts.scheme}://{parts.netloc}"
    if not isinstance(error, urllib.error.HTTPError):
        reason = getattr(error, "reason", error)
        return Unreachable(where, f"the store does not answer ({reason})")
    error.close()
    if error.code == 404:
        return NotFound("the store no longer has this file")
    if error.code in {403, 408, 410, 429} or error.code >= 500:
        return Unreachable(where, f"the store answered {error.code}")
    return ServerFailed(f"the store at {where} refused the request with {error.code}")
