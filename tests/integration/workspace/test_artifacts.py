"""Artifacts on their way: from a workspace to a store over real HTTP, and into another workspace."""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
import tenacity

from agent.problems import Cause, JobProblem
from agent.workspace.artifacts import (
    ArtifactFile,
    Collected,
    Sizes,
    collect,
    download_files,
    upload_files,
)
from agent.workspace.transfers import Courier, Transfer
from agent.workspace.tree import Bounds, Tree
from headrace.pipeline.plan import ArtifactSpec


class Store:
    """A blob store as it should be, with faults to order: what is in `answers` comes first."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.answers: list[str] = []
        self.lengths: list[str | None] = []
        self.requests = 0
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.url = ""
        self.stale: set[str] = set()

    def transfer(self, file: ArtifactFile, method: str, *, generation: str = "1") -> Transfer:
        headers = {"Content-Length": str(file.size), "If-None-Match": "*"} if method == "PUT" else {}
        return Transfer(file.sha256, file.size, f"{self.url}/{generation}/{file.sha256}", method, headers)

    async def to_upload(self, files: Sequence[ArtifactFile]) -> list[Transfer]:
        return [self.transfer(file, "PUT") for file in files]

    async def to_download(self, files: Sequence[ArtifactFile]) -> list[Transfer]:
        return [self.transfer(file, "GET") for file in files]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def do_PUT(self) -> None:
        self.store.lengths.append(self.headers.get("Content-Length"))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._disturbed():
            return
        key = self.path.rsplit("/", 1)[1]
        if hashlib.sha256(body).hexdigest() != key:
            self.close_connection = True
            return
        code = 412 if key in self.store.objects else 200
        self.store.objects[key] = body
        self._answer(code, b"")

    def do_GET(self) -> None:
        with self.store.lock:
            self.store.now += 1
            self.store.most = max(self.store.most, self.store.now)
        try:
            if not self._disturbed():
                self._answer(200, self.store.objects[self.path.rsplit("/", 1)[1]])
        finally:
            with self.store.lock:
                self.store.now -= 1

    def _disturbed(self) -> bool:
        self.store.requests += 1
        if self.path.split("/")[1] in self.store.stale:
            self._answer(403, b"expired")
            return True
        with self.store.lock:
            what = self.store.answers.pop(0) if self.store.answers else ""
        if what == "cut":
            self.close_connection = True
            return True
        if what == "half":
            content = self.store.objects[self.path.rsplit("/", 1)[1]]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return True
        if what == "wrong":
            content = self.store.objects[self.path.rsplit("/", 1)[1]]
            self._answer(200, bytes(len(content)))
            return True
        if what == "long":
            self._answer(200, bytes(10_000_000))
            return True
        if what:
            self._answer(int(what.split(" ")[0]), what.partition(" ")[2].encode() or b"because")
        return bool(what)

    def _answer(self, code: int, content: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    handler = type("Bound", (Handler,), {"store": made})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        made.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
async def courier() -> AsyncIterator[Courier]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield Courier(client, parallel=3, tries=4, wait=tenacity.wait_none())


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Tree]:
    (tmp_path / "here").mkdir()
    with Tree.open(tmp_path / "here") as tree:
        yield tree


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Tree]:
    (tmp_path / "there").mkdir()
    with Tree.open(tmp_path / "there") as tree:
        yield tree


async def collected(tree: Tree, *paths: str, sizes: Sizes | None = None, bounds: Bounds | None = None) -> Collected:
    return await collect(tree, ArtifactSpec("dist", paths), time.monotonic, sizes=sizes, bounds=bounds)


async def test_an_artifact_arrives_as_it_was(
    store: Store, courier: Courier, here: Tree, there: Tree, tmp_path: Path
) -> None:
    """Names, bytes, the executable bit; equal contents travel once; a whole chunk more than memory is at ease with."""
    (tmp_path / "here/dist").mkdir()
    big = os.urandom(3_000_001)
    for name, content in {"a.whl": big, "same.whl": big, "empty": b"", "tüte": b"x"}.items():
        (tmp_path / "here/dist" / name).write_bytes(content)
    (tmp_path / "here/dist/a.whl").chmod(0o6755)
    found = await collected(here, "dist/**")
    assert [f.path for f in found.files] == ["dist/a.whl", "dist/empty", "dist/same.whl", "dist/tüte"]
    assert found.files[0] == ArtifactFile("dist/a.whl", hashlib.sha256(big).hexdigest(), len(big), executable=True)
    await upload_files(courier, here, found.files, store.to_upload)
    assert sorted(store.lengths) == ["0", "1", "3000001"]
    await download_files(courier, there, found.files, store.to_download, into="in/deep", owner=None)
    arrived = tmp_path / "there/in/deep/dist"
    assert (arrived / "a.whl").read_bytes() == (arrived / "same.whl").read_bytes() == big
    assert (arrived / "a.whl").stat().st_mode & 0o7777 == 0o755
    assert (arrived / "tüte").stat().st_mode & 0o7777 == 0o644


@pytest.mark.parametrize("faults", [["503", "500", "429"], ["cut", "503"], ["412"]])
async def test_an_upload_survives_what_passes(
    faults: list[str], store: Store, courier: Courier, here: Tree, tmp_path: Path
) -> None:
    """A store that restarts; and 412, which says that an earlier try of ours got through."""
    (tmp_path / "here/f").write_bytes(os.urandom(100_000))
    store.answers = list(faults)
    files = (await collected(here, "f")).files
    await upload_files(courier, here, files, store.to_upload)
    assert store.requests == (1 if faults == ["412"] else len(faults) + 1)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("507 the disk is full: free some room\n", "answered 507: the disk is full: free some room."),
        ("500 <?xml version='1.0'?><Error><Code>C</Code><Message>No room.</Message></Error>", "answered 500: No room."),
        ("502 <html><h1>Bad Gateway</h1></html>", "answered 502."),
        ("cut", "could not be reached"),
    ],
)
async def test_a_store_that_keeps_failing_is_quoted(
    answer: str, reason: str, store: Store, courier: Courier, here: Tree, tmp_path: Path
) -> None:
    """Whoever reads why the job failed has to free a disk, not to look for a broken line; and needs no markup."""
    (tmp_path / "here/f").write_bytes(b"f")
    store.answers = [answer] * 4
    with pytest.raises(JobProblem, match="in 4 tries") as caught:
        await upload_files(courier, here, (await collected(here, "f")).files, store.to_upload)
    assert reason in caught.value.sentence
    assert "<" not in caught.value.sentence


@pytest.mark.parametrize("faults", [["503"], ["cut"], ["half"], ["wrong", "half"]])
async def test_a_download_survives_what_passes_and_never_mixes_two_tries(
    faults: list[str], store: Store, courier: Courier, there: Tree, tmp_path: Path
) -> None:
    """Half an object and then all of it must be one object."""
    content = os.urandom(2_500_000)
    file = ArtifactFile("f", hashlib.sha256(content).hexdigest(), len(content), executable=False)
    store.objects[file.sha256] = content
    store.answers = list(faults)
    await download_files(courier, there, [file], store.to_download, into="", owner=None)
    assert (tmp_path / "there/f").read_bytes() == content


@pytest.mark.parametrize(("fault", "sentence"), [("wrong", "in 4 tries"), ("long", "more than the"), ("404", "404")])
async def test_a_wrong_object_is_not_left_in_the_workspace(
    fault: str, sentence: str, store: Store, courier: Courier, there: Tree, tmp_path: Path
) -> None:
    """The digest is checked here too: the store and the way to it are believed nothing."""
    content = os.urandom(1000)
    file = ArtifactFile("f", hashlib.sha256(content).hexdigest(), len(content), executable=False)
    store.objects[file.sha256] = content
    store.answers = [fault] * 4
    with pytest.raises(JobProblem, match=sentence) as caught:
        await download_files(courier, there, [file], store.to_download, into="", owner=None)
    assert caught.value.cause is Cause.ERRORED
    assert "http://" not in caught.value.sentence
    assert not (tmp_path / "there/f").exists()


async def test_an_expired_request_is_asked_for_once_more(
    store: Store, courier: Courier, here: Tree, there: Tree, tmp_path: Path
) -> None:
    """Signed requests live ten minutes; a queue of large files takes longer."""
    (tmp_path / "here/f").write_text("content")
    files = (await collected(here, "f")).files
    asked: list[str] = []
    store.stale = {"old"}

    async def ask(some: Sequence[ArtifactFile]) -> list[Transfer]:
        asked.append("new" if asked else "old")
        return [store.transfer(file, "PUT", generation=asked[-1]) for file in some]

    await upload_files(courier, here, files, ask)
    assert asked == ["old", "new"]


async def test_only_so_many_objects_move_at_once(store: Store, courier: Courier, there: Tree, tmp_path: Path) -> None:
    """Descriptors and memory are bounded, however many files there are."""
    files = []
    for number in range(150):
        content = str(number).encode()
        files.append(ArtifactFile(f"d/{number}", hashlib.sha256(content).hexdigest(), len(content), executable=False))
        store.objects[files[-1].sha256] = content
    await download_files(courier, there, files, store.to_download, into="", owner=None)
    assert len(list((tmp_path / "there/d").iterdir())) == 150
    assert 1 <= store.most <= 3


async def test_a_file_in_the_way_is_a_conflict_before_anything_is_fetched(
    store: Store, courier: Courier, there: Tree, tmp_path: Path
) -> None:
    """A job's own file is never overwritten, and half an artifact is no artifact."""
    files = [ArtifactFile(name, "0" * 64, 1, executable=False) for name in ("a", "b")]
    (tmp_path / "there/b").write_text("mine")

    async def never(asked: Sequence[ArtifactFile]) -> list[Transfer]:
        raise AssertionError(asked)

    with pytest.raises(JobProblem, match="b exists already") as caught:
        await download_files(courier, there, files, never, into="", owner=None)
    assert caught.value.cause is Cause.ARTIFACT_CONFLICT
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["b"]
    assert store.requests == 0


async def test_a_path_that_leads_out_is_refused(store: Store, courier: Courier, there: Tree, tmp_path: Path) -> None:
    """The list of files comes from another attempt, which was hostile too."""
    for path in ("../x", "/x", "a/../../x"):
        with pytest.raises(JobProblem) as caught:
            await download_files(
                courier,
                there,
                [ArtifactFile(path, "0" * 64, 1, executable=False)],
                store.to_download,
                into="",
                owner=None,
            )
        assert caught.value.cause is Cause.REFUSED
    assert store.requests == 0


async def test_a_file_that_changes_after_it_was_counted_is_not_kept(
    store: Store, courier: Courier, here: Tree, tmp_path: Path
) -> None:
    """The digest was promised to the coordinator; other bytes are another artifact."""
    (tmp_path / "here/f").write_text("first")
    files = (await collected(here, "f")).files
    for changed in ("other", "longer than it was", "x"):
        (tmp_path / "here/f").write_text(changed)
        with pytest.raises(JobProblem):
            await upload_files(courier, here, files, store.to_upload)
    assert store.objects == {}


async def test_too_much_and_too_strange_is_refused(here: Tree, tmp_path: Path) -> None:
    """Sparse files, many files, names that no wire can carry: one sentence each, at once."""
    with (tmp_path / "here/sparse").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(JobProblem, match="sparse has over"):
        await collected(here, "sparse")
    (tmp_path / "here/a").write_bytes(b"x" * 600)
    (tmp_path / "here/b").write_bytes(b"x" * 600)
    with pytest.raises(JobProblem, match="b has over 400 bytes"):
        await collected(here, "a", "b", sizes=Sizes(file=1000, all=1000))
    with pytest.raises(JobProblem, match="match over 1 files"):
        await collected(here, "*", bounds=Bounds(matches=1))
    with pytest.raises(JobProblem, match="leads out"):
        await collected(here, "../*")
    os.close(os.open(os.fsencode(tmp_path) + b"/here/\xff", os.O_CREAT))
    with pytest.raises(JobProblem, match="is not UTF-8") as caught:
        await collected(here, "?")
    assert caught.value.cause is Cause.REFUSED
    assert caught.value.sentence.isascii()


async def test_a_cancelled_download_leaves_nothing(store: Store, courier: Courier, there: Tree, tmp_path: Path) -> None:
    """A canceled job's workspace goes anyway; a half file must not be taken for a whole one until then."""
    arrived = asyncio.Event()

    async def ask(files: Sequence[ArtifactFile]) -> list[Transfer]:
        arrived.set()
        return [Transfer(f.sha256, f.size, f"http://127.0.0.1:{port}/x", "GET") for f in files]

    writers: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: writers.put_nowait(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        file = ArtifactFile("f", "0" * 64, 10, executable=False)
        task = asyncio.create_task(download_files(courier, there, [file], ask, into="", owner=None))
        writer = await asyncio.wait_for(writers.get(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        writer.close()
        await writer.wait_closed()
    assert not (tmp_path / "there/f").exists()
