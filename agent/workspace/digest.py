"""What `hash(glob, …)` of an expression means: one digest of the files in a workspace. Blocks: call it in a thread."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence

from agent.workspace.tree import Bounds, TooMuch, Tree
from headrace.pipeline.globs import Patterns

MOST_FILES = 10_000
MOST_BYTES = 1 << 30


def digest_of(tree: Tree, globs: Sequence[str], clock: Callable[[], float], *, most_bytes: int = MOST_BYTES) -> str:
    """SHA-256 in hex over the paths and contents of the regular files that the globs mean, sorted by path.

    Links, FIFOs and the like are passed over, and so is the mode of a file. Where nothing matches it is the empty
    text, so that `hash('*.lock') != ''` asks whether there is such a file, and a cache key of a project without one
    is still a key. Raises `TreeProblem` for over 10,000 files or 1 GiB, `BadPattern` for a glob that leads elsewhere.
    """
    found = tree.glob(Patterns(tuple(globs)), Bounds(matches=MOST_FILES), clock)
    if not found.files:
        return ""
    whole, left = hashlib.sha256(), most_bytes
    for path in sorted(found.files, key=os.fsencode):
        content = hashlib.sha256()
        try:
            for piece in tree.chunks(path, left):
                content.update(piece)
                left -= len(piece)
        except TooMuch as error:
            raise TooMuch(f"The files to be hashed have over {most_bytes} bytes: name fewer.") from error
        # Both parts have a known length, so that no two lists of files make the same bytes.
        whole.update(hashlib.sha256(os.fsencode(path)).digest() + content.digest())
    return whole.hexdigest()
