"""Every store under one suite: `file://` behind its real endpoint, `s3://` on a real SeaweedFS."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import uvicorn

from coordinator.blobs.opening import BlobSettings, open_blob_store, open_folder
from coordinator.blobs.store import BlobStore
from coordinator.blobs.urls import UrlSigner
from coordinator.web.blob_endpoint import blob_endpoint
from tests.harness.seaweedfs import SeaweedFS, seaweedfs

__all__ = ["seaweedfs"]


@dataclass
class World:
    """A store, how others reach it, and where its files are (`file://` alone)."""

    store: BlobStore
    http: httpx.AsyncClient
    kind: str
    root: Path | None = None


@contextlib.asynccontextmanager
async def serving_folder(root: Path, uploads_at_once: int = 64, patience_s: float = 60.0) -> AsyncIterator[World]:
    """A `file://` store and its endpoint on a loopback port."""
    secret = secrets.token_bytes(32)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        store = open_blob_store(f"file://{root}", BlobSettings(url, secret))
        app = blob_endpoint(open_folder(root), UrlSigner([secret]), time.time, uploads_at_once, patience_s)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        serving = asyncio.create_task(server.serve([listener]))
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
                yield World(store, http, "file", root)
        finally:
            server.should_exit = True
            await serving


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture
async def world(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if kind == "file":
        async with serving_folder(tmp_path / "blobs") as found:
            yield found
        return
    weed: SeaweedFS = request.getfixturevalue("seaweedfs")
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        yield World(open_blob_store(weed.url("blobs"), weed.settings), http, "s3")


@pytest_asyncio.fixture
async def files(tmp_path: Path) -> AsyncIterator[World]:
    """A `file://` world, for what is only its own."""
    async with serving_folder(tmp_path / "blobs") as found:
        yield found
