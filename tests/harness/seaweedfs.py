"""A real S3-compatible store for tests: one SeaweedFS a session, one bucket, a prefix a test.

```python
from tests.harness.seaweedfs import seaweedfs  # in a conftest.py
@pytest.mark.s3
async def test_...(seaweedfs: SeaweedFS): open_blob_store(seaweedfs.url("my-test"), seaweedfs.settings)
```
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from coordinator.blobs.opening import BlobSettings
from coordinator.blobs.s3 import S3Settings

BUCKET = "headrace"
_START_SECONDS = 60.0


@dataclass(frozen=True)
class SeaweedFS:
    """A running store: its S3 endpoint and the credentials of its one user."""

    endpoint: str
    access_key_id: str
    secret_access_key: str

    def url(self, prefix: str) -> str:
        """A store of the test's own: the bucket is everybody's, new ones are slow."""
        return f"s3://{BUCKET}/{prefix}-{secrets.token_hex(4)}"

    @property
    def settings(self) -> BlobSettings:
        return BlobSettings(
            s3=S3Settings(
                access_key_id=self.access_key_id,
                secret_access_key=self.secret_access_key,
                endpoint=self.endpoint,
            )
        )


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[SeaweedFS]:
    folder = Path(tempfile.mkdtemp(prefix="hr-s3-"))
    try:
        with serving(folder) as found:
            yield found
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[SeaweedFS]:
    """One that keeps its data in a folder, on whatever disk that is."""
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    identity = {"name": "test", "credentials": [{"accessKey": key, "secretKey": secret}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    port = _free_ports()
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            _command(folder, port), stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=folder, start_new_session=True
        )
    try:
        _wait_until_ready(process, log, port)
        yield SeaweedFS(f"http://127.0.0.1:{port}", key, secret)
    finally:
        process.kill()  # SIGTERM takes it up to half a minute
        process.wait()
        for number in _taken(port):  # it names sockets of its own by these, and there is no setting for where
            for socket_left in Path("/tmp").glob(f"seaweedfs-*-grpc-{number}.sock"):
                socket_left.unlink()


def _command(folder: Path, port: int) -> list[str]:
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if weed is None:
        pytest.fail("the program `weed` is missing: install the extra headrace[dev]")
    ports = {
        "s3.port": 0, "master.port": 1, "master.port.grpc": 2, "volume.port": 3, "volume.port.grpc": 4,
        "filer.port": 5, "filer.port.grpc": 6, "s3.port.grpc": 7, "admin.port": 8,
    }  # fmt: skip
    return [
        weed, "-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-filer.localSocket={folder}/filer.sock", f"-s3.localSocket={folder}/s3.sock",
        f"-s3.config={folder}/s3.json", f"-bucket={BUCKET}",
        *(f"-{name}={port + offset}" for name, offset in ports.items()),
    ]  # fmt: skip


def _taken(port: int) -> tuple[int, ...]:
    """All ports of a server whose first is this one: that of the admin's gRPC is none of our choice."""
    return (*range(port, port + 9), port + 10008)


def _free_ports() -> int:
    """Return P such that P to P+8 and P+10008 are free; P is at most 22,000."""
    for _ in range(200):
        port = 12000 + 10 * secrets.randbelow(1000)
        try:
            for number in _taken(port):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port
    pytest.fail("no ten free ports in a row")


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path, port: int) -> None:
    """Wait until the bucket is made and an unsigned request is refused, which is the S3 gate at work."""
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        text = log.read_text(errors="replace").lower()
        if f"bucket {BUCKET}" in text.replace("'", "").replace('"', "") or f"/buckets/{BUCKET}" in text:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{BUCKET}", timeout=2)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 403:
                    return
            except OSError:
                pass
        time.sleep(0.05)
    pytest.fail(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-3000:]}")
