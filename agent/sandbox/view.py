"""What a bubblewrap job can see and do, as bwrap's command line. Read `argv` from top to bottom: there is
no more.

Never the host's root: everything is listed. Pure: paths in, words out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agent.sandbox import entry, etc
from agent.sandbox.protocol import Bind

_ROOT_FOLDERS: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC_SIZE: Final = 1 << 20

Place = Callable[[Path], str]
"""Where bwrap finds a path of the host when it starts: the path itself, or one on a stage."""


@dataclass(frozen=True, slots=True)
class View:
    """What one sandbox holds besides `/usr`."""

    read_only: tuple[Path, ...] = ()
    """Host paths shown at their own place."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Made files of /etc: target -> file in the attempt's folder."""
    binds: tuple[Bind, ...] = ()
    """The job's own: /hr, the workspace, what it borrows."""
    scratch: int = 2 << 30
    """Bytes that each writable tmpfs may hold."""
    share_network: bool = False
    """Stay in the network namespace that bwrap is started in."""


def argv(bwrap: str, view: View, place: Place, command: Sequence[str]) -> tuple[str, ...]:
    """bwrap's command line; `{status_fd}` and `{seccomp}` are filled in by whoever starts it."""
    return (
        bwrap,
        *("--unshare-all", "--unshare-user", "--disable-userns", "--as-pid-1", "--die-with-parent"),
        *("--new-session", "--cap-drop", "ALL", "--hostname", "headrace"),
        *(("--share-net",) if view.share_network else ()),
        *("--uid", str(etc.UID), "--gid", str(etc.UID)),
        *("--json-status-fd", "{status_fd}", "--seccomp", "{seccomp}"),
        *_programs(),
        *("--proc", "/proc", "--dev", "/dev"),
        *_scratch(view.scratch),
        *("--remount-ro", "/dev"),
        *_read_only(view, place),
        *(word for bind in view.binds for word in _bind(bind, place)),
        *("--remount-ro", "/etc", "--remount-ro", "/"),
        *("--chdir", entry.WORKSPACE if _has_workspace(view) else "/", "--", *command),
    )


def _has_workspace(view: View) -> bool:
    return any(bind.target == entry.WORKSPACE for bind in view.binds)


def _programs() -> tuple[str, ...]:
    """`/usr`, and /bin, /lib and the like as they are on the host: links into it, or folders of their own."""
    words = ["--ro-bind", "/usr", "/usr"]
    for name in _ROOT_FOLDERS:
        folder = Path("/", name)
        if folder.is_symlink():
            words += ["--symlink", str(folder.readlink()), str(folder)]
        elif folder.is_dir():
            words += ["--ro-bind", str(folder), str(folder)]
    return tuple(words)


def _scratch(size: int) -> tuple[str, ...]:
    """The writable places in memory. /dev itself is a tmpfs without a bound: it is made read-only."""
    open_to_all = ("--perms", "1777", "--size", str(size), "--tmpfs")
    private = ("--perms", "0755", "--size", str(size), "--tmpfs")
    return (
        *(*open_to_all, "/dev/shm", *open_to_all, "/tmp"),  # noqa: S108 - names inside the sandbox
        *(*private, "/run", *private, "/var", "--perms", "1777", "--dir", "/var/tmp"),  # noqa: S108 - inside
        *("--perms", "0755", "--dir", "/home", *private, etc.HOME),
        *("--perms", "0755", "--size", str(_ETC_SIZE), "--tmpfs", "/etc"),
    )


def _read_only(view: View, place: Place) -> tuple[str, ...]:
    """Parents before children, so that none is hidden; what lies in /usr is there already."""
    targets = {str(path): path for path in view.read_only if not path.is_relative_to("/usr")}
    targets |= view.files
    return tuple(word for target in sorted(targets) for word in ("--ro-bind", place(targets[target]), target))


def _bind(bind: Bind, place: Place) -> tuple[str, str, str]:
    return ("--bind" if bind.writable else "--ro-bind", place(bind.source), bind.target)
