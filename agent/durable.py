"""Small files that outlive a power cut: synced, and their names too."""

from __future__ import annotations

import os
from pathlib import Path

from headrace.daemon.folders import sync_folder


def replace_file(file: Path, text: str) -> None:
    """Writes `file` anew: after a crash it holds the old text or the new one, and the new one once this returns."""
    draft = file.with_name(file.name + ".new")
    try:
        with draft.open("w", encoding="utf-8") as written:
            written.write(text)
            written.flush()
            os.fsync(written.fileno())
    except OSError:
        draft.unlink(missing_ok=True)  # a second sync of it would say that all is well
        raise
    draft.replace(file)
    sync_folder(file.parent)
