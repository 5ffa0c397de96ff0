"""Git repositories for tests: made with fixed authors and dates, and served over git and http on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

ENVIRONMENT = {
    "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "Ana",
    "GIT_AUTHOR_EMAIL": "ana@example.com",
    "GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z",
    "GIT_COMMITTER_NAME": "Ana",
    "GIT_COMMITTER_EMAIL": "ana@example.com",
    "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z",
    "LC_ALL": "C.UTF-8",
}


def git(folder: Path, *arguments: str, **variables: str) -> str:
    """Runs git in a folder and returns what it printed; raises with git's message when it fails."""
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        env={**ENVIRONMENT, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"git {' '.join(arguments)}: {done.stderr}"
    return done.stdout.removesuffix("\n")


class Repository:
    """A repository with a work tree."""

    def __init__(self, path: Path, *, branch: str = "main") -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        git(path, "init", "--quiet", f"--initial-branch={branch}")

    def commit(self, files: Mapping[str, str | bytes], message: str = "change") -> str:
        """Writes the files, commits everything and returns the full hash."""
        for name, content in files.items():
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def git(self, *arguments: str) -> str:
        """Runs git in it."""
        return git(self.path, *arguments)


def fingerprint(folder: Path) -> dict[str, str]:
    """Path -> kind, mode, time and digest of everything below a folder: equal means untouched, byte for byte.

    The time of an object file does not count: git renews it whenever it would have written the same object again.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        digest = hashlib.sha256(content).hexdigest()
        is_object = path.is_file() and ".git" in path.parts and "objects" in path.parts
        time = 0 if is_object else facts.st_mtime_ns
        found[str(path.relative_to(folder))] = f"{facts.st_mode:o} {time} {facts.st_size} {digest}"
    return found


@contextlib.contextmanager
def git_daemon(base: Path) -> Iterator[str]:
    """Serves every repository below `base` by `git daemon`; gives the URL of the folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["git", "daemon", "--verbose", "--export-all", "--reuseaddr", "--listen=127.0.0.1"]
    with subprocess.Popen(
        [*command, f"--port={port}", f"--base-path={base}", str(base)],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as daemon:
        assert daemon.stderr is not None
        for line in daemon.stderr:
            if "Ready to rumble" in line:
                break
        drain = threading.Thread(target=lambda: [None for _ in daemon.stderr or ()], daemon=True)
        drain.start()
        try:
            yield f"git://127.0.0.1:{port}"
        finally:
            os.killpg(daemon.pid, 15)
            daemon.wait()
            drain.join()


def _of_request(
    request: http.server.BaseHTTPRequestHandler, base: Path, path: str, query: str, length: int
) -> dict[str, str]:
    """What git's CGI program wants to know of a request."""
    return {
        **ENVIRONMENT,
        "GIT_PROJECT_ROOT": str(base),
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        "REQUEST_METHOD": request.command,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_TYPE": request.headers.get("Content-Type", ""),
        "CONTENT_LENGTH": str(length),
        "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
        "REMOTE_ADDR": "127.0.0.1",
    }


class Besides(Protocol):
    """What else a server answers."""

    def answer(self, request: http.server.BaseHTTPRequestHandler, body: bytes) -> bool:
        """Answers a request, if it is one for it."""
        ...


@contextlib.contextmanager
def http_backend(base: Path, besides: Besides | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serves every repository below `base` by `git http-backend`; gives the URL and the requests seen."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self._body())

        def _answer(self, body: bytes) -> None:
            if besides is None or not besides.answer(self, body):
                self._run(body)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", "0")))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _run(self, body: bytes) -> None:
            path, _, query = self.path.partition("?")
            seen.append(f"{self.command} {self.path}")
            done = subprocess.run(
                ["git", "http-backend"],
                input=body,
                capture_output=True,
                check=False,
                env=_of_request(self, base, path, query, len(body)),
            )
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            headers = dict(line.decode().split(": ", 1) for line in head.split(b"\r\n") if line)
            self.send_response(int(headers.pop("Status", "200").split()[0]))
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", seen
        finally:
            server.shutdown()
            thread.join()
