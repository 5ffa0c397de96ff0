"""What an artifact may be called, and its files: judged where they come in, for they become paths elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.blobs.keys import BadKey, check_digest
from coordinator.errors import BadInput, Violation
from headrace.v1 import blob_pb2

DAY_MS = 24 * 3_600_000
BLOBS_MOST = 1_000
"""Files of one PrepareUpload."""
FILES_MOST = 10_000
"""Files of an artifact."""
SIZE_MOST = 5 << 30
"""Bytes of a file: what a single PUT may bring, on every store."""
KEEP_MOST_MS = 3_650 * DAY_MS
_NAME_MOST = 100
_PATH_MOST = 1_024
"""Bytes: it stands in an index of the database, whose entries have at most a third of a page."""
_PART_MOST = 255


def check_name(name: str) -> None:
    """Refuses what is not an artifact's name: 1 to 100 printable characters without slashes. Raises BadInput."""
    if not 0 < len(name) <= _NAME_MOST or not name.isprintable() or set("/\\") & set(name) or name in {".", ".."}:
        raise _bad("name", f"an artifact's name is 1 to {_NAME_MOST} printable characters without slashes")


def check_keep(keep_ms: int) -> None:
    """Refuses a time that is negative or over ten years. Raises BadInput."""
    if not 0 <= keep_ms <= KEEP_MOST_MS:
        raise _bad("keep_ms", "an artifact is kept for at most ten years")


def check_blobs(files: Sequence[blob_pb2.BlobFile]) -> None:
    """Refuses more than 1,000, and what is no digest or no size. Raises BadInput."""
    if len(files) > BLOBS_MOST:
        raise _bad("files", f"{len(files)} files in one call: send at most {BLOBS_MOST}")
    for index, file in enumerate(files):
        _check_blob(f"files[{index}]", file.sha256, file.size)


def check_files(files: Sequence[blob_pb2.ArtifactFile]) -> None:
    """Refuses files that could not lie beside one another below one folder. Raises BadInput."""
    if len(files) > FILES_MOST:
        raise _bad("files", f"an artifact of {len(files)} files: at most {FILES_MOST}, pack them into an archive")
    paths, folders = set[str](), set[str]()
    sizes: dict[str, int] = {}
    for index, file in enumerate(files):
        field = f"files[{index}]"
        _check_blob(field, file.sha256, file.size)
        _check_path(f"{field}.path", file.path)
        if file.path in paths:
            raise _bad(f"{field}.path", f"`{file.path}` stands twice")
        if sizes.setdefault(file.sha256, file.size) != file.size:
            raise _bad(f"{field}.size", f"`{file.path}` has the digest of a file of another size")
        paths.add(file.path)
        parts = file.path.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    if both := paths & folders:
        raise _bad("files", f"`{min(both)}` is both a file and a folder")


def _check_blob(field: str, sha256: str, size: int) -> None:
    try:
        check_digest(sha256)
    except BadKey as error:
        raise _bad(f"{field}.sha256", str(error)) from error
    if not 0 <= size <= SIZE_MOST:
        raise _bad(f"{field}.size", f"a file has at most {SIZE_MOST >> 30} GiB, this one says {size} bytes")


def _check_path(field: str, path: str) -> None:
    if len(path.encode()) > _PATH_MOST:
        raise _bad(field, f"`{path[:200]}…` has more than {_PATH_MOST:,} bytes: pack deep folders into an archive")
    parts = path.split("/")
    wrong = any(
        part in {"", ".", ".."} or len(part.encode()) > _PART_MOST or any(ord(char) < 32 for char in part)
        for part in parts
    )
    if wrong:
        raise _bad(field, f"{path[:200]!r} is not a path of an artifact: relative, with `/`, without `.` and `..`")


def _bad(field: str, sentence: str) -> BadInput:
    return BadInput(sentence, (Violation(field, sentence),))
