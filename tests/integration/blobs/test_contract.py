"""What every blob store promises, on the real thing."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from coordinator.blobs.keys import BadKey, artifact_key
from coordinator.blobs.store import BlobCorrupt, BlobExists, BlobMissing, SignedRequest, verified
from tests.integration.blobs.conftest import World

BODY = b"what a job made\n" * 1000


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


KEY = artifact_key(1, 2, sha(BODY))


async def send(world: World, signed: SignedRequest, body: bytes = BODY, **changes: str | None) -> httpx.Response:
    """Carry a signed request out, with headers changed or (None) left out."""
    headers = {**signed.headers, **{name.replace("_", "-"): value for name, value in changes.items()}}
    present = {name: value for name, value in headers.items() if value is not None}
    return await world.http.request(signed.method, signed.url, content=body or None, headers=present)


async def read(world: World, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in world.store.get(key, start, end)])


async def test_bytes_come_back_as_they_were_put(world: World) -> None:
    """The whole point of a store."""
    await world.store.put(KEY, BODY, sha256_hex=sha(BODY))
    info = await world.store.head(KEY)
    assert info is not None
    assert (info.key, info.size) == (KEY, len(BODY))
    assert abs(info.modified - time.time()) < 60
    assert b"".join([chunk async for chunk in verified(world.store.get(KEY), sha(BODY))]) == BODY


async def test_an_object_is_written_once(world: World) -> None:
    """A late writer, of a lost attempt say, must not overwrite what others have read."""
    await world.store.put(KEY, BODY)
    with pytest.raises(BlobExists):
        await world.store.put(KEY, b"other")
    assert await read(world, KEY) == BODY


async def test_a_range_is_cut_at_the_end_of_the_object(world: World) -> None:
    """A tail of a log asks for more than there is."""
    await world.store.put(KEY, b"0123456789")
    assert await read(world, KEY, 3, 6) == b"345"
    assert await read(world, KEY, 7, 99) == b"789"
    assert await read(world, KEY, 10) == b""
    assert await read(world, KEY, 42, 50) == b""


async def test_what_is_not_there_is_named_as_missing(world: World) -> None:
    """Missing is an answer, not a failure of the store."""
    assert await world.store.head(KEY) is None
    with pytest.raises(BlobMissing):
        await read(world, KEY)


async def test_deleting_twice_is_deleting(world: World) -> None:
    """A clean-up that was cut short is run again."""
    await world.store.put(KEY, BODY)
    await world.store.delete([KEY, "logs/1/never-there"])
    await world.store.delete([KEY])
    assert await world.store.head(KEY) is None


async def test_bytes_that_do_not_have_the_digest_are_refused_and_leave_nothing(world: World) -> None:
    """A bit that flipped on the way must be seen while the sender still has the file."""
    with pytest.raises(BlobCorrupt):
        await world.store.put(KEY, BODY, sha256_hex=sha(b"other"))
    assert await world.store.head(KEY) is None


async def test_a_damaged_object_is_seen_by_its_reader(world: World) -> None:
    """Digests are checked at both ends."""
    await world.store.put(KEY, b"damaged")
    with pytest.raises(BlobCorrupt):
        async for _ in verified(world.store.get(KEY), sha(BODY)):
            pass


async def test_a_stream_that_breaks_leaves_nothing(world: World) -> None:
    """A writer that fails half-way has written nothing, and its own error is what is seen."""

    async def breaking() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(1 << 20)
        raise ConnectionAbortedError("the other side went away")

    with pytest.raises(Exception, match="the other side went away"):
        await world.store.put(KEY, breaking())
    assert await world.store.head(KEY) is None


async def test_a_long_stream_is_written_once_too(world: World) -> None:
    """What is too long for one request takes another way into the store, with the same promise."""

    async def long(fill: bytes) -> AsyncIterator[bytes]:
        for _ in range(20):
            yield fill * (1 << 20)

    await world.store.put(KEY, long(b"a"), sha256_hex=sha(b"a" * (20 << 20)))
    with pytest.raises(BlobExists):
        await world.store.put(KEY, long(b"b"))
    assert await read(world, KEY, (20 << 20) - 3) == b"aaa"


@pytest.mark.parametrize("key", ["../x", "a/../b", "a//b", "/etc/passwd", "A", "a b", "", ".x", "a/.x", "a" * 600])
async def test_what_is_not_a_key_reaches_no_store(world: World, key: str) -> None:
    """No path may leave the store's folder or prefix."""
    with pytest.raises(BadKey):
        await world.store.put(key, b"")
    with pytest.raises(BadKey):
        await world.store.sign_put(key, 1, sha(b""))


async def test_a_signed_upload_puts_exactly_those_bytes(world: World) -> None:
    """Agents have no credentials of the store: this is the only way in."""
    signed = await world.store.sign_put(KEY, len(BODY), sha(BODY))
    assert (await send(world, signed)).is_success
    assert await read(world, KEY) == BODY


async def test_an_empty_file_is_a_file(world: World) -> None:
    """`touch done` is an artifact too."""
    signed = await world.store.sign_put(KEY, 0, sha(b""))
    assert (await send(world, signed, b"")).is_success
    info = await world.store.head(KEY)
    assert info is not None
    assert info.size == 0
    assert await read(world, KEY) == b""


async def test_a_second_upload_to_a_key_is_refused(world: World) -> None:
    """Whoever had an address for the key before cannot replace what was published under it."""
    other = BODY.upper()
    first = await world.store.sign_put(KEY, len(BODY), sha(BODY))
    second = await world.store.sign_put(KEY, len(other), sha(other))
    assert (await send(world, first)).is_success
    assert (await send(world, second, other)).status_code == 412
    assert await read(world, KEY) == BODY


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        pytest.param(BODY + b"x", {"content_length": str(len(BODY) + 1)}, id="a longer body"),
        pytest.param(BODY[:-1], {"content_length": str(len(BODY) - 1)}, id="a shorter body"),
        pytest.param(BODY.upper(), {}, id="other bytes of the same length"),
        pytest.param(
            BODY.upper(),
            {"x_amz_checksum_sha256": base64.b64encode(hashlib.sha256(BODY.upper()).digest()).decode()},
            id="other bytes and their checksum",
        ),
        pytest.param(BODY, {"x_amz_checksum_sha256": None}, id="no checksum"),
        pytest.param(BODY, {"if_none_match": None}, id="no if-none-match"),
        pytest.param(BODY, {"if_none_match": '"x"'}, id="another if-none-match"),
    ],
)
async def test_an_upload_that_is_not_what_was_signed_is_refused(
    world: World, body: bytes, changes: dict[str, str | None]
) -> None:
    """The signature binds length, bytes and the free key: an address is good for one file, not for a write."""
    signed = await world.store.sign_put(KEY, len(BODY), sha(BODY))
    assert (await send(world, signed, body, **changes)).status_code in {400, 403}
    assert await world.store.head(KEY) is None


async def test_an_expired_address_is_refused(world: World) -> None:
    """An address that leaks into a log is worth nothing ten minutes later."""
    signed = await world.store.sign_put(KEY, len(BODY), sha(BODY), now=time.time() - 610)
    assert (await send(world, signed)).status_code == 403
    assert await world.store.head(KEY) is None


async def test_an_address_is_good_for_its_key_verb_and_signature_alone(world: World) -> None:
    """Whoever has one address has that one."""
    other = artifact_key(1, 3, sha(BODY))
    await world.store.put(other, b"secret")
    put = await world.store.sign_put(KEY, len(BODY), sha(BODY))
    get = await world.store.sign_get(KEY, "x")
    wrong_key = SignedRequest("GET", get.url.replace(KEY, other), {}, 1)
    wrong_verb = SignedRequest("PUT", get.url, put.headers, 1)
    read_by_put = SignedRequest("GET", put.url, put.headers, 1)
    last = put.url[-1]
    tampered = SignedRequest("PUT", put.url[:-1] + ("0" if last != "0" else "1"), put.headers, 1)
    deleting = SignedRequest("DELETE", put.url, put.headers, 1)
    for request in (wrong_key, wrong_verb, read_by_put, tampered, deleting):
        assert (await send(world, request)).status_code in {400, 403, 405}
    assert await world.store.head(KEY) is None


async def test_a_download_is_an_attachment_that_no_browser_shows(world: World) -> None:
    """A job's HTML must not run as a page of ours."""
    await world.store.put(KEY, b"<script>alert(1)</script>")
    signed = await world.store.sign_get(KEY, 'dist/péché "x".html')
    answer = await world.http.get(signed.url)
    assert answer.content == b"<script>alert(1)</script>"
    assert answer.headers["content-disposition"].startswith(
        "attachment; filename=\"p_ch_ _x_.html\"; filename*=UTF-8''"
    )
    assert answer.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("asked", "status", "got"),
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=5-99", 206, b"56789"),
        ("bytes=10-", 416, None),
    ],
)
async def test_a_download_can_be_taken_up_again(world: World, asked: str, status: int, got: bytes | None) -> None:
    """A large artifact over a bad line comes in pieces."""
    await world.store.put(KEY, b"0123456789")
    signed = await world.store.sign_get(KEY, "x")
    answer = await world.http.get(signed.url, headers={"range": asked})
    assert answer.status_code == status
    if got is not None:
        assert answer.content == got
        assert answer.headers["content-range"].endswith("/10")


async def test_a_download_of_what_is_not_there_says_so(world: World) -> None:
    """Kept time over, say: that is not a refusal."""
    signed = await world.store.sign_get(KEY, "x")
    assert (await world.http.get(signed.url)).status_code == 404
