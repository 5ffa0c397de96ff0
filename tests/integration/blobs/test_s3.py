"""What only the `s3://` store does."""

from __future__ import annotations

import hashlib
import time

import httpx
import pytest

from coordinator.blobs.keys import artifact_key
from coordinator.blobs.opening import open_blob_store
from coordinator.blobs.store import BlobError, StoreUnavailable
from tests.harness.seaweedfs import SeaweedFS

BODY = b"made by a job"
DIGEST = hashlib.sha256(BODY).hexdigest()
KEY = artifact_key(1, 2, DIGEST)

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("wrong_by", [-3600, 3600])
async def test_a_coordinator_with_a_wrong_clock_signs_by_the_stores(seaweedfs: SeaweedFS, wrong_by: int) -> None:
    """An on-prem machine an hour off would else hand out addresses that are expired, or live too long. Nor does a clock
    that is set right, or wrong, while it runs: what was learned of the store's time was once counted from there."""
    steps = [0.0]
    store = open_blob_store(seaweedfs.url("clock"), seaweedfs.settings, clock=lambda: time.time() + steps[-1])
    async with httpx.AsyncClient(trust_env=False) as http:
        for at, step in enumerate((wrong_by, 0, wrong_by)):
            steps.append(step)
            body = BODY + bytes([at])
            digest = hashlib.sha256(body).hexdigest()
            signed = await store.sign_put(artifact_key(1, 2, digest), len(body), digest)
            assert (await http.put(signed.url, content=body, headers=dict(signed.headers))).is_success, step


async def test_credentials_show_nowhere(seaweedfs: SeaweedFS, caplog: pytest.LogCaptureFixture) -> None:
    """Logs and crash reports are read by more people than the bucket is."""
    caplog.set_level("DEBUG")
    store = open_blob_store(seaweedfs.url("quiet"), seaweedfs.settings)
    signed = await store.sign_put(KEY, len(BODY), DIGEST)
    signature = signed.url.rsplit("X-Amz-Signature=", 1)[1]
    shown = repr((store, seaweedfs.settings, signed)) + caplog.text
    assert seaweedfs.secret_access_key not in shown
    assert signature not in shown


async def test_a_store_that_does_not_answer_is_said_in_one_sentence(seaweedfs: SeaweedFS) -> None:
    """The machinery failed, and the message must not quote addresses or keys."""
    settings = SeaweedFS("http://127.0.0.1:9", "key", "secret").settings
    store = open_blob_store("s3://nowhere/x", settings)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await store.sign_put(KEY, len(BODY), DIGEST)


async def test_wrong_credentials_are_a_failure_of_the_store_not_a_missing_object(seaweedfs: SeaweedFS) -> None:
    """Taken for missing, a changed key would look like lost artifacts."""
    settings = SeaweedFS(seaweedfs.endpoint, "key", "secret").settings
    with pytest.raises(StoreUnavailable):
        await open_blob_store(seaweedfs.url("wrong"), settings).head(KEY)


@pytest.mark.parametrize("url", ["", "s3://", "ftp://x/y", "file://host/x", "file:relative", "/just/a/path"])
def test_what_is_not_a_store_is_refused_in_one_sentence(seaweedfs: SeaweedFS, url: str) -> None:
    """A mistyped setting stops the start, and says what would do."""
    with pytest.raises(BlobError, match="not a blob store"):
        open_blob_store(url, seaweedfs.settings)
