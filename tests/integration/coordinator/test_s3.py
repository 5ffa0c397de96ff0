"""A fleet whose blobs lie in an S3-compatible store: bundle, artifact and log, from the commit to the download."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from pathlib import Path

import grpc
import pytest

from headrace.v1 import blob_pb2, blob_pb2_grpc
from tests.harness.command_line import git_repository
from tests.harness.seaweedfs import SeaweedFS
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import bearer, client, token

pytestmark = [pytest.mark.s3, pytest.mark.timeout(240)]

PIPELINE = """
name: through-s3
stages:
  - name: build
    jobs:
      make:
        sandbox: bubblewrap
        network: none
        steps: [{run: "mkdir out; seq 1 100000 > out/numbers; cp note.txt out/; chmod +x out/note.txt"}]
        artifacts: [{name: made, paths: ["out/*"]}]
  - name: test
    jobs:
      use:
        sandbox: bubblewrap
        network: none
        steps: [{use: artifact/made}, {run: "seq 1 100000 | cmp - out/numbers; test -x out/note.txt"}]
"""


def test_bundle_and_artifacts_go_through_s3_and_back(
    make_coordinator: Make, make_agent: Make, seaweedfs: SeaweedFS, tmp_path: Path
) -> None:
    """Signed requests alone: neither the agent nor the client has a credential of the store, and the
    coordinator's own folder holds no blob."""
    first = make_coordinator(
        HEADRACE_BLOB_URL=seaweedfs.url("fleet"),
        HEADRACE_S3_ENDPOINT=seaweedfs.endpoint,
        HEADRACE_S3_ACCESS_KEY_ID=seaweedfs.access_key_id,
        HEADRACE_S3_SECRET_ACCESS_KEY=seaweedfs.secret_access_key,
    )
    first.start()
    second = make_agent(first)
    second.start()
    git_repository(tmp_path / "repository", {"headrace.yml": PIPELINE, "note.txt": "committed\n"})
    (tmp_path / "repository/note.txt").write_text("edited\n")  # so that the source has to travel as a bundle
    line = client(first, tmp_path / "repository", tmp_path)
    done = line("run", seconds=120)
    assert done.code == 0, done.out + done.err

    with grpc.insecure_channel(first.facts["address"]) as channel:
        answer = blob_pb2_grpc.BlobServiceStub(channel).DownloadArtifact(
            blob_pb2.DownloadArtifactRequest(run_id=1, name="made"), metadata=bearer(token(first, "client"))
        )
    assert {each.path: each.executable for each in answer.artifact.files} == {
        "out/numbers": False,
        "out/note.txt": True,
    }
    hosts = {urllib.parse.urlsplit(each.url).netloc for each in answer.transfers}
    assert hosts == {urllib.parse.urlsplit(seaweedfs.endpoint).netloc}
    found = {
        file.path: _body(each.url)
        for file, each in zip(answer.artifact.files, answer.transfers, strict=True)
    }  # fmt: skip
    assert found["out/note.txt"] == b"edited\n"
    assert found["out/numbers"] == "".join(f"{n}\n" for n in range(1, 100_001)).encode()

    listed = json.loads(line("artifacts", "1", "--json").out)
    assert "made" in json.dumps(listed)
    assert not [each for each in (first.folder / "blobs").rglob("*") if each.is_file()]
    assert seaweedfs.secret_access_key not in first.said + second.said + done.out + done.err


def _body(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=20) as answer:
        return bytes(answer.read())


def test_a_store_with_wrong_credentials_fails_the_artifact_in_a_sentence(
    make_coordinator: Make, make_agent: Make, seaweedfs: SeaweedFS, tmp_path: Path
) -> None:
    """The machinery failed, not the user's command; nobody is shown a traceback or a key."""
    first = make_coordinator(
        HEADRACE_BLOB_URL=seaweedfs.url("wrong"),
        HEADRACE_S3_ENDPOINT=seaweedfs.endpoint,
        HEADRACE_S3_ACCESS_KEY_ID=seaweedfs.access_key_id,
        HEADRACE_S3_SECRET_ACCESS_KEY="sesame-open",
    )
    first.start()
    git_repository(tmp_path / "repository", {"headrace.yml": PIPELINE, "note.txt": "committed\n"})
    (tmp_path / "repository/note.txt").write_text("edited\n")
    done = client(first, tmp_path / "repository", tmp_path)("run", seconds=120)
    assert done.code == 3
    assert "blob store" in done.err
    assert "sesame-open" not in done.err + first.said
