"""Images for the tests, made on this machine: nothing is pulled from anywhere."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import docker

DEBIAN = "headrace-test/debian:bookworm"
BUSYBOX = "headrace-test/busybox:latest"
BARE = "headrace-test/bare-base:latest"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "headrace-tests"


def busybox(engine: str) -> str:
    """A 2 MB image with Debian's static busybox and nothing else; returns its name."""
    return _imported(engine, BUSYBOX, _busybox_tar())


def bare(engine: str) -> str:
    """An image with one program that waits, and without a shell; returns its name."""
    return variant(
        engine, "headrace-test/bare:latest", _imported(engine, BARE, _bare_tar()), {"CMD": '["/sleep", "9999"]'}
    )


def debian(engine: str, include: str = "") -> str:
    """Debian's smallest system by debootstrap, made once and kept in the cache; returns the image's name.

    `include`: further packages, separated by commas (`python3,git`).
    """
    name = DEBIAN if not include else f"{DEBIAN}-{include.replace(',', '-')}"
    if _has(engine, name):
        return name
    return _imported(engine, name, _debian_tar(include))


def variant(engine: str, name: str, base: str, config: Mapping[str, str]) -> str:
    """`base` with other metadata: Dockerfile instruction -> value (`ENV`: `BASH_ENV=/x`); returns `name`."""
    lines = [f"FROM {base}", *(f"{word} {value}" for word, value in config.items())]
    with contextlib.closing(docker.APIClient(base_url=engine, version="auto")) as client:
        file = io.BytesIO("\n".join(lines).encode())
        for line in client.build(fileobj=file, tag=name, rm=True, forcerm=True, decode=True):
            if "error" in line:
                raise RuntimeError(line["error"])
    return name


def _has(engine: str, name: str) -> bool:
    with contextlib.closing(docker.APIClient(base_url=engine, version="auto")) as client:
        return bool(client.images(name=name))


def _imported(engine: str, name: str, archive: Path | bytes) -> str:
    if not _has(engine, name):
        repository, tag = name.rsplit(":", 1)
        with contextlib.closing(docker.APIClient(base_url=engine, version="auto", timeout=300)) as client:
            if isinstance(archive, bytes):
                client.import_image_from_data(archive, repository=repository, tag=tag)
            else:
                client.import_image_from_file(str(archive), repository=repository, tag=tag)
    return name


def _busybox_tar() -> bytes:
    path = shutil.which("busybox")
    if path is None:
        raise RuntimeError("busybox cannot be found: apt-get install busybox-static")
    applets = subprocess.run([path, "--list"], capture_output=True, text=True, check=True).stdout.split()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for folder in ("bin", "usr", "usr/bin", "tmp", "etc", "root"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        tar.add(path, "bin/busybox")
        for applet in applets:
            link = tarfile.TarInfo(f"usr/bin/{applet}" if applet == "env" else f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "/bin/busybox"
            if applet != "busybox":
                tar.addfile(link)
        passwd = tarfile.TarInfo("etc/passwd")
        text = b"root:x:0:0::/root:/bin/sh\n"
        passwd.size = len(text)
        tar.addfile(passwd, io.BytesIO(text))
    return archive.getvalue()


def _bare_tar() -> bytes:
    """A busybox that answers to `sleep` alone, because nothing else is named so."""
    path = shutil.which("busybox")
    if path is None:
        raise RuntimeError("busybox cannot be found: apt-get install busybox-static")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(path, "sleep")
    return archive.getvalue()


def _debian_tar(include: str) -> Path:
    """The packed system, made by whoever comes first; others wait for it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    packed = CACHE / f"bookworm{'-' if include else ''}{include.replace(',', '-')}.tar"
    with _locked(packed.with_suffix(".lock")):
        if packed.exists():
            return packed
        if os.geteuid() != 0 or shutil.which("debootstrap") is None:
            raise RuntimeError("the Debian image needs root and debootstrap: apt-get install debootstrap")
        folder = Path(tempfile.mkdtemp(prefix="hr-debian-"))
        try:
            extra = [f"--include={include}"] if include else []
            command = ["debootstrap", "--variant=minbase", *extra, "bookworm", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"debootstrap failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")
            part = packed.with_suffix(".part")
            subprocess.run(
                ["tar", "-C", str(folder), "--exclude=./var/cache/apt/archives/*.deb", "-cf", str(part), "."],
                check=True,
            )
            part.rename(packed)
        finally:
            shutil.rmtree(folder)
    return packed


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
