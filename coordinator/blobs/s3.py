"""The `s3://` store, on any S3-compatible endpoint. obstore moves bytes; botocore signs for who has no credentials."""

from __future__ import annotations

import asyncio
import email.utils
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import obstore
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError
from botocore.httpsession import URLLib3Session
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from coordinator.blobs.keys import check_digest, check_key
from coordinator.blobs.reading import read_range, stat_object, unavailable
from coordinator.blobs.source import Source
from coordinator.blobs.store import (
    URL_SECONDS,
    BlobExists,
    BlobInfo,
    SignedRequest,
    StoreUnavailable,
    content_disposition,
)
from coordinator.blobs.urls import upload_headers

if TYPE_CHECKING:
    from obstore.store import S3Config  # a name that type checkers alone can import

_SINGLE_PUT = 16 << 20
_PART = 8 << 20
_CLOCK_GOOD_FOR = 300.0


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How to reach a bucket. `endpoint` "" is AWS's own. The secrets never show in its repr."""

    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    region: str = "us-east-1"
    endpoint: str = ""
    path_style: bool = True

    def base_url(self, bucket: str) -> str:
        """Return the address of the bucket, without a slash at its end."""
        endpoint = self.endpoint.rstrip("/") or f"https://s3.{self.region}.amazonaws.com"
        if self.path_style:
            return f"{endpoint}/{bucket}"
        scheme, _, host = endpoint.partition("://")
        return f"{scheme}://{bucket}.{host}"


class StoreClock:
    """The store's own time: the `Date` of its answers, learned every five minutes, carried on by our monotonic clock.

    S3 refuses a signature that is 15 minutes off, and calls one expired by its own clock, never by ours: that may step.
    """

    def __init__(self, endpoint: str, monotonic: Callable[[], float]) -> None:
        self._endpoint = endpoint
        self._monotonic = monotonic
        self._offset = 0.0
        self._learned: float | None = None
        self._learning = asyncio.Lock()

    async def now(self) -> float:
        """Return the store's time in unix seconds. What was learned last stands while the store does not answer.

        Raises `StoreUnavailable` if it has never answered.
        """
        async with self._learning:
            if self._learned is None or self._monotonic() - self._learned > _CLOCK_GOOD_FOR:
                await self._learn()
        return self._monotonic() + self._offset

    async def _learn(self) -> None:
        before = self._monotonic()
        try:
            date = await asyncio.to_thread(self._date)
        except StoreUnavailable:
            if self._learned is None:
                raise
            return
        self._learned = self._monotonic()
        self._offset = date - (before + self._learned) / 2

    def _date(self) -> float:
        session = URLLib3Session(timeout=10)
        try:
            answer = session.send(AWSRequest("HEAD", self._endpoint).prepare())
            return email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp()
        except (BotoCoreError, KeyError, ValueError, TypeError) as error:
            raise StoreUnavailable("the blob store does not answer, or does not tell its time") from error
        finally:
            session.close()


class S3Blobs:
    """Objects of one bucket below a prefix."""

    def __init__(self, bucket: str, prefix: str, settings: S3Settings, clock: StoreClock) -> None:
        self._base = settings.base_url(bucket)
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._settings = settings
        self._clock = clock
        self._store = _open_store(bucket, self._prefix, settings, self._base)

    async def put(self, key: str, data: bytes | AsyncIterator[bytes], *, sha256_hex: str | None = None) -> None:
        """Write an object; see `BlobStore.put`. More than 16 MiB go in parts to a name aside, then to the key."""
        check_key(key)
        source = Source(_once(data) if isinstance(data, bytes) else data, sha256_hex)
        try:
            whole, rest = await source.split(_SINGLE_PUT)
            if rest is None:
                source.check()
                await obstore.put_async(self._store, key, whole, mode="create", use_multipart=False)
            else:
                await self._put_in_parts(key, source, rest)
        except (AlreadyExistsError, FileExistsError) as error:
            raise BlobExists("this object is there already, and objects are written once") from error
        except (BaseError, OSError) as error:
            source.reraise()
            raise unavailable(error) from error

    def get(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield an object's bytes; see `BlobStore.get`."""
        return read_range(self._store, check_key(key), start, end)

    async def head(self, key: str) -> BlobInfo | None:
        """Return what is known of an object; see `BlobStore.head`."""
        return await stat_object(self._store, check_key(key))

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, a thousand a request; see `BlobStore.delete`."""
        try:
            await obstore.delete_async(self._store, [check_key(key) for key in keys])
        except (BaseError, OSError) as error:
            raise unavailable(error) from error

    async def sign_put(self, key: str, size: int, sha256_hex: str, now: float | None = None) -> SignedRequest:
        """Sign an upload; see `BlobStore.sign_put`."""
        headers = upload_headers(size, check_digest(sha256_hex))
        return await self._sign("PUT", key, headers, {}, now)

    async def sign_get(self, key: str, filename: str, now: float | None = None) -> SignedRequest:
        """Sign a download; see `BlobStore.sign_get`."""
        answer = {
            "response-content-disposition": content_disposition(filename),
            "response-content-type": "application/octet-stream",
        }
        return await self._sign("GET", key, {}, answer, now)

    async def close(self) -> None:
        """Nothing is held."""

    async def _put_in_parts(self, key: str, source: Source, data: AsyncIterator[bytes]) -> None:
        """A multipart upload cannot be conditional here, the copy can: so the key appears once and whole, or never."""
        staged = f"staging/{secrets.token_hex(16)}"
        try:
            await obstore.put_async(self._store, staged, data, use_multipart=True, chunk_size=_PART)
            source.check()
            await obstore.copy_async(self._store, staged, key, overwrite=False)
        finally:
            await obstore.delete_async(self._store, [staged])

    async def _sign(
        self, method: str, key: str, headers: Mapping[str, str], query: Mapping[str, str], now: float | None
    ) -> SignedRequest:
        at = datetime.fromtimestamp(await self._clock.now() if now is None else now, UTC)
        url = f"{self._base}/{quote(self._prefix + check_key(key), safe='/-_.~')}"
        if query:
            url += f"?{urlencode(query, quote_via=quote)}"
        request = AWSRequest(method, url, dict(headers))
        credentials = Credentials(
            self._settings.access_key_id, self._settings.secret_access_key, self._settings.session_token or None
        )
        _QueryAuthAt(at, credentials, self._settings.region).add_auth(request)
        return SignedRequest(method, request.url, headers, URL_SECONDS)


class _QueryAuthAt(S3SigV4QueryAuth):  # type: ignore[misc]  # botocore has no types
    """botocore's presigning, as of a given time instead of this machine's; and nothing of it goes to its log."""

    def __init__(self, at: datetime, credentials: Credentials, region: str) -> None:
        super().__init__(credentials, "s3", region, expires=URL_SECONDS)
        self._at = at

    def add_auth(self, request: AWSRequest) -> None:
        request.context["timestamp"] = self._at.strftime("%Y%m%dT%H%M%SZ")
        self._modify_request_before_signing(request)
        text = self.string_to_sign(request, self.canonical_request(request))
        self._inject_signature_to_request(request, self.signature(text, request))


def _open_store(bucket: str, prefix: str, settings: S3Settings, base: str) -> S3Store:
    endpoint = base.removesuffix(f"/{bucket}") if settings.path_style else base
    config: S3Config = {
        "access_key_id": settings.access_key_id,
        "secret_access_key": settings.secret_access_key,
        "region": settings.region,
        "endpoint": endpoint,
        "virtual_hosted_style_request": not settings.path_style,
        "checksum_algorithm": "sha256",
        "conditional_put": "etag",
        "copy_if_not_exists": "multipart",
    }
    if settings.session_token:  # an empty token is a wrong one
        config["session_token"] = settings.session_token
    return S3Store(
        bucket,
        prefix=prefix or None,
        config=config,
        # The default limits a whole request to 30 s, which a large object on a slow line exceeds.
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "timeout": timedelta(hours=1),
            "read_timeout": timedelta(seconds=60),
            "connect_timeout": timedelta(seconds=10),
        },
        retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=60)},
    )


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
