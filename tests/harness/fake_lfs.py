"""The other side of git LFS: a server of large files, as far as its batch API goes, beside real repositories."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
from dataclasses import dataclass, field

_KIND = "application/vnd.git-lfs+json"
_PIECE = 1 << 16
_ENOUGH = 256 << 20
"""Bytes after which a client that still listens has shown that nothing stops it."""


@dataclass
class FakeLfs:
    """Answers below `…/info/lfs`; put it beside a `http_backend`."""

    objects: dict[str, bytes] = field(default_factory=dict)
    """By SHA-256."""
    wants_password: bool = False
    without_end: bool = False
    """Sends every object far beyond its size, until it is cut off."""
    sent: int = 0
    """Bytes of such objects."""
    spoilt: bool = False
    """Sends other bytes than it was asked for."""
    seen: list[tuple[str, str]] = field(default_factory=list)
    """Path and Authorization of each request."""

    def keep(self, content: bytes) -> str:
        """Takes a large file; returns its pointer."""
        oid = hashlib.sha256(content).hexdigest()
        self.objects[oid] = content
        return pointer(oid, len(content))

    def answer(self, request: http.server.BaseHTTPRequestHandler, body: bytes) -> bool:
        """Answers a request for large files, and no other."""
        if "/info/lfs/" not in request.path:
            return False
        self.seen.append((request.path, request.headers.get("Authorization", "")))
        if self.wants_password and not request.headers.get("Authorization"):
            _send(request, 401, b"{}", {"WWW-Authenticate": 'Basic realm="x"'})
        elif request.path.endswith("/objects/batch"):
            _send(request, 200, self._batch(request, json.loads(body)))
        elif self.without_end:
            self._send_on_and_on(request)
        else:
            content = self.objects[request.path.rpartition("/")[2]]
            _send(request, 200, b"x" * len(content) if self.spoilt else content)
        return True

    def _send_on_and_on(self, request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        with contextlib.suppress(OSError):
            while self.sent < _ENOUGH:
                request.wfile.write(b"x" * _PIECE)
                self.sent += _PIECE

    def _batch(self, request: http.server.BaseHTTPRequestHandler, asked: dict[str, object]) -> bytes:
        wanted = asked["objects"]
        assert isinstance(wanted, list)
        found = []
        for each in wanted:
            if each["oid"] in self.objects:
                place = request.path.removesuffix("/batch")
                link = f"http://{request.headers['Host']}{place}/{each['oid']}"
                header = {"Authorization": request.headers.get("Authorization", "")}
                found.append({**each, "actions": {"download": {"href": link, "header": header}}})
            else:
                found.append({**each, "error": {"code": 404, "message": "Object does not exist"}})
        return json.dumps({"transfer": "basic", "objects": found}).encode()


def pointer(oid: str, size: int) -> str:
    """The text that stands in a commit for a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"


def _send(
    request: http.server.BaseHTTPRequestHandler, code: int, body: bytes, more: dict[str, str] | None = None
) -> None:
    request.send_response(code)
    for name, value in {"Content-Type": _KIND, "Content-Length": str(len(body)), **(more or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)
