"""What only the `file://` store and its endpoint do."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from coordinator.blobs.folder import ObjectFolder
from coordinator.blobs.keys import artifact_key
from coordinator.blobs.store import StoreFull
from tests.integration.blobs.conftest import World, serving_folder

BODY = os.urandom(100_000)
DIGEST = hashlib.sha256(BODY).hexdigest()
KEY = artifact_key(1, 2, DIGEST)


def everything_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def peak_kib(*, anew: bool = False) -> int:
    """The most memory this process has held, in KiB; `anew` makes the kernel count from here."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


async def wait_for_files(root: Path, count: int) -> None:
    async with asyncio.timeout(20):
        while len(everything_below(root)) != count:  # noqa: ASYNC110  # a folder has no event
            await asyncio.sleep(0.01)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(root)], check=True)
    yield root
    subprocess.run(["umount", str(root)], check=True)


async def test_an_upload_whose_answer_was_lost_may_be_sent_again(files: World) -> None:
    """The agent cannot know that its first one arrived; the same bytes are no conflict."""
    signed = await files.store.sign_put(KEY, len(BODY), DIGEST)
    for _ in range(2):
        answer = await files.http.put(signed.url, content=BODY, headers=dict(signed.headers))
        assert answer.status_code == 204


async def test_every_answer_forbids_guessing_and_scripts(files: World) -> None:
    """What jobs made, and our own refusals, are inert in a browser."""
    await files.store.put(KEY, BODY)
    signed = await files.store.sign_get(KEY, "x.html")
    for url in (signed.url, signed.url + "0"):
        headers = (await files.http.get(url)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("sandbox")


async def test_head_tells_the_length_without_the_bytes(files: World) -> None:
    """A downloader sizes its progress bar by it."""
    await files.store.put(KEY, BODY)
    signed = await files.store.sign_get(KEY, "x")
    answer = await files.http.head(signed.url)
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, str(len(BODY)), b"")


@pytest.mark.parametrize(
    "path", ["/blobs/../secret", "/blobs/%2e%2e/secret", "/blobs/..%2fsecret", "/blobs//etc/passwd"]
)
async def test_no_path_leads_out_of_the_folder(files: World, path: str) -> None:
    """Not even with a good signature for something else; sent raw, for clients tidy paths up."""
    assert files.root is not None
    (files.root / "secret").write_text("secret")
    signed = urlsplit((await files.store.sign_get(KEY, "x")).url)
    reader, writer = await asyncio.open_connection(signed.hostname, signed.port)
    writer.write(f"GET {path}?{signed.query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.split(b" ", 2)[1] in {b"400", b"403", b"404"}
    assert answer.split(b"\r\n\r\n", 1)[1] != b"secret"


async def test_a_client_that_goes_away_in_the_middle_leaves_nothing(files: World) -> None:
    """An agent killed while it uploads must not fill the disk, or show half a file."""
    assert files.root is not None
    signed = await files.store.sign_put(KEY, len(BODY), DIGEST)
    parts = urlsplit(signed.url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = "".join(f"{name}: {value}\r\n" for name, value in signed.headers.items())
    writer.write(f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode() + BODY[:50_000])
    await writer.drain()
    await wait_for_files(files.root, 1)
    writer.transport.abort()
    await wait_for_files(files.root, 0)
    assert await files.store.head(KEY) is None


async def test_what_a_killed_coordinator_had_half_written_is_swept(tmp_path: Path) -> None:
    """Invisible while it lies there, gone after the next start; an upload under way elsewhere is left alone."""
    program = f"""
import asyncio, pathlib
from coordinator.blobs.folder import ObjectFolder
async def slow():
    yield bytes(2 << 20)
    print("begun", flush=True)
    await asyncio.Event().wait()
asyncio.run(ObjectFolder(pathlib.Path({str(tmp_path)!r})).write({KEY!r}, slow(), 4 << 20, None))
"""
    writer = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert writer.stdout is not None
    assert await writer.stdout.readline() == b"begun\n"
    folder = ObjectFolder(tmp_path)
    assert folder.sweep() == 0, "its writer is alive"
    writer.send_signal(signal.SIGKILL)
    await writer.wait()
    assert not folder.path(KEY).exists()
    assert len(everything_below(tmp_path)) == 1
    assert folder.sweep() == 1
    assert everything_below(tmp_path) == []


async def test_many_uploads_of_one_key_at_once_make_one_whole_object(files: World) -> None:
    """Two attempts, two addresses, one moment: each is told the truth and nothing is mixed."""
    assert files.root is not None
    bodies = [bytes([number]) * 300_000 for number in range(12)]
    signed = [await files.store.sign_put(KEY, len(body), hashlib.sha256(body).hexdigest()) for body in bodies]
    answers = await asyncio.gather(
        *(files.http.put(s.url, content=b, headers=dict(s.headers)) for s, b in zip(signed, bodies, strict=True))
    )
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [204] + [412] * 11
    assert (files.root / "objects" / KEY).read_bytes() == bodies[statuses.index(204)]
    assert len(everything_below(files.root)) == 1


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
async def test_a_full_disk_is_said_and_leaves_nothing(small_disk: Path) -> None:
    """507 tells the agent to wait and try again; half a file would take the last room for nothing."""
    async with serving_folder(small_disk) as files:
        big = bytes(4 << 20)
        signed = await files.store.sign_put(KEY, len(big), hashlib.sha256(big).hexdigest())
        answer = await files.http.put(signed.url, content=big, headers=dict(signed.headers))
        assert answer.status_code == 507
        assert everything_below(small_disk) == []

        async def stream() -> AsyncIterator[bytes]:
            for _ in range(4):
                yield bytes(1 << 20)

        with pytest.raises(StoreFull):
            await files.store.put(KEY, stream())
        assert everything_below(small_disk) == []
        signed = await files.store.sign_put(KEY, len(BODY), DIGEST)
        answer = await files.http.put(signed.url, content=BODY, headers=dict(signed.headers))
        assert answer.status_code == 204, "what still fits is taken"


async def test_a_hundred_megabytes_pass_through_without_staying_in_memory(world: World) -> None:
    """An artifact may be larger than the coordinator's memory, which all runs share."""
    size, block = 100 << 20, os.urandom(1 << 20)
    digest = hashlib.sha256(block * 100).hexdigest()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield block

    before = peak_kib(anew=True)
    signed = await world.store.sign_put(KEY, size, digest)
    assert (await world.http.put(signed.url, content=body(), headers=dict(signed.headers))).is_success
    received = hashlib.sha256()
    async for chunk in world.store.get(KEY):
        received.update(chunk)
    assert received.hexdigest() == digest
    got = await world.store.sign_get(KEY, "x")
    async with world.http.stream("GET", got.url) as answer:
        async for chunk in answer.aiter_raw():
            size -= len(chunk)
    assert size == 0
    await world.store.put("copy", body(), sha256_hex=digest)
    grown = peak_kib() - before
    print(f"{world.kind}: {grown} KiB more at the peak")
    assert grown < 64 << 10, f"{grown} KiB more at the peak"


async def test_an_upload_that_only_drips_holds_neither_its_place_nor_what_it_announced(tmp_path: Path) -> None:
    """A byte now and then held a place for ever, and gigabytes of the disk that had only been announced."""
    async with serving_folder(tmp_path / "blobs", uploads_at_once=1, patience_s=0.5) as files:

        async def drips() -> AsyncIterator[bytes]:
            for _ in range(1 << 19):
                yield b"x"
                await asyncio.sleep(0.1)  # it is slow: that is what is tested

        signed = await files.store.sign_put(artifact_key(1, 3, DIGEST), 1 << 19, DIGEST)
        dripping = asyncio.create_task(files.http.put(signed.url, content=drips(), headers=dict(signed.headers)))
        await wait_for_files(tmp_path / "blobs/uploads", 1)
        assert sum(each.stat().st_blocks * 512 for each in everything_below(tmp_path / "blobs")) < 1 << 19
        signed = await files.store.sign_put(KEY, len(BODY), DIGEST)
        async with asyncio.timeout(30):
            answer = await files.http.put(signed.url, content=BODY, headers=dict(signed.headers))
        assert answer.status_code == 204
        assert not dripping.done()
        dripping.cancel()
        await asyncio.wait([dripping])
