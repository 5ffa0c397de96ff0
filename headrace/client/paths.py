"""Names of files that a job chose, made paths below a folder of ours."""

from __future__ import annotations

from pathlib import Path

from headrace.errors import Corrupt


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, for a relative name with `/` that leads nowhere else.

    Raises:
        Corrupt: the name is empty, absolute, has an empty, `.` or `..` part, or a NUL.

    """
    parts = name.split("/")
    if "\0" in name or any(part in {"", ".", ".."} for part in parts):
        raise Corrupt(f"the artifact holds a file with the name {name!r}, which would lie outside {folder}")
    return folder.joinpath(*parts)
