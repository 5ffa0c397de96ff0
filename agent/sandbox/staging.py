"""How a root agent starts a sandbox under a slot's own uid.

That uid cannot reach what lies below a private folder: a Python in /root, the wheel's bwrap, an attempt's
workspace. So the start goes through a private mount namespace in which those places are bound below one empty
folder. The mounts exist only there and end with it: nothing is left to clean, not even after a crash.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.problems import Cause, JobProblem

_SCRIPT: Final = """
set -eu
mount=$1 stage=$2; shift 2
"$mount" -t tmpfs -o mode=0755,size=64k,nosuid,nodev headrace "$stage"
while [ "$1" != -- ]; do
  if [ -d "$2" ]; then mkdir "$stage/$1"; else : > "$stage/$1"; fi
  "$mount" --rbind "$2" "$stage/$1"
  shift 2
done
shift; exec "$@"
"""
_FOLDERS: Final = ("/mnt", "/media", "/srv")
"""Where the private mounts go: folders that every Linux has. What lies there is hidden from the start
alone."""
_TOOLS: Final = ("unshare", "sh", "mkdir", "mount", "setpriv", "nsenter")


class Stage:
    """Collects the places that one start needs, and says where they are found then."""

    def __init__(self, folder: Path, tools: dict[str, str], uid: int) -> None:
        self._folder = folder
        self._tools = tools
        self._uid = uid
        self._places: dict[Path, str] = {}

    def __call__(self, place: Path) -> str:
        """The path of `place` in the private namespace: its own, where everybody can reach it."""
        if reachable(place):
            return str(place)
        name = self._places.setdefault(place, str(len(self._places)))
        return f"{self._folder}/{name}"

    def argv(self, command: Sequence[str], namespace: Path | None) -> tuple[str, ...]:
        """`command` under the slot's uid, with all that was asked for in place; `namespace`: its
        network's."""
        tools = self._tools
        binds = [word for place, name in self._places.items() for word in (name, str(place))]
        enter = () if namespace is None else (tools["nsenter"], f"--net={namespace}", "--")
        ids = (f"--reuid={self._uid}", f"--regid={self._uid}", "--clear-groups", "--pdeathsig", "KILL", "--")
        return (
            *(tools["unshare"], "--mount", "--propagation", "private", "--"),
            *(tools["sh"], "-c", _SCRIPT, "stage", tools["mount"], str(self._folder), *binds, "--"),
            *(*enter, tools["setpriv"], *ids, *command),
        )


def reachable(place: Path) -> bool:
    """Whether any uid can walk to `place`; what it may do there is decided by the place itself."""
    try:
        return all(folder.stat().st_mode & 0o001 for folder in place.parents)
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Staging:
    """Makes stages. `first_uid` + slot is the uid of a slot: nobody else's on this machine."""

    first_uid: int
    tools: dict[str, str]

    @classmethod
    def find(cls, first_uid: int) -> Staging | str:
        """With the machine's own tools, or the sentence that says which is missing."""
        tools = {name: shutil.which(name) for name in _TOOLS}
        missing = [name for name, path in tools.items() if path is None]
        if missing:
            return f"{' and '.join(missing)} cannot be found: install util-linux and coreutils"
        return cls(first_uid, {name: path for name, path in tools.items() if path is not None})

    def uid(self, slot: int) -> int:
        """The uid, and gid, of a slot's jobs outside of their sandbox."""
        return self.first_uid + slot

    def stage(self, slot: int, places: Sequence[Path]) -> Stage:
        """An empty stage for a job that needs `places`; its folder hides none of them."""
        free = (folder for folder in map(Path, _FOLDERS) if folder.is_dir())
        folder = next((f for f in free if not any(place.is_relative_to(f) for place in places)), None)
        if folder is None:
            sentence = f"no folder is free to start the sandbox in: one of {', '.join(_FOLDERS)} is needed"
            raise JobProblem(Cause.ERRORED, sentence)
        return Stage(folder, self.tools, self.uid(slot))
