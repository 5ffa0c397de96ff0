"""A real pgbouncer in transaction mode before a PostgreSQL of the tests.

```python
with PgBouncer(server.dsn, tmp_path) as pooler:
    Database.open(pooler.dsn_of(dsn), size=8, pooler=True)
```
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

SETTINGS = """
[databases]
* = host={host} port=5432 user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
; each transaction gets another session than the one before: what is left behind in one is not found again
server_round_robin = 1
max_client_conn = 500
; or it lets 15 s pass before it looks again for a server that was away
server_login_retry = 1
; who waits for a server is told soon
query_wait_timeout = 5
"""


class PgBouncer:
    """Runs as long as it is entered. `dsn`: of the server behind it, on a socket. `size`: sessions for a database."""

    def __init__(self, dsn: str, folder: Path, *, size: int = 8) -> None:
        self._dsn = dsn
        self._folder = folder
        self._size = size
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def dsn_of(self, dsn: str) -> str:
        """The same database through the pooler."""
        return f"postgresql://headrace@127.0.0.1:{self.port}{urlsplit(dsn).path}"

    def __enter__(self) -> Self:
        parts = urlsplit(self._dsn)
        (host,) = parse_qs(parts.query)["host"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        settings = self._folder / "pgbouncer.ini"
        text = SETTINGS.format(
            host=host, user=parts.username, password=unquote(parts.password or ""), port=self.port, size=self._size
        )
        # It refuses to be root, as PostgreSQL does: it becomes what our server is, whose socket nobody else may reach.
        owner = Path(host).stat().st_uid
        elsewhere = ("unshare", "-U", "--map-user=65534", "--map-group=65534", "--") if owner == 0 else ()
        settings.touch(0o600)
        os.chown(settings, owner, -1)
        settings.write_text(text)
        log = self._folder / "pgbouncer.log"
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program, "pgbouncer is not installed: scripts/test_needs"
        with settings.open("rb") as read, log.open("wb") as out:
            self._process = subprocess.Popen(
                [*elsewhere, program, f"/dev/fd/{read.fileno()}"],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                pass_fds=(read.fileno(),),
                user=owner,
            )
        self._wait(log)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()

    def _wait(self, log: Path) -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            assert self._process is not None
            assert self._process.poll() is None, log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)  # a program of others: there is nothing to wait on
        raise AssertionError(f"pgbouncer was not ready:\n{log.read_text()}")
