"""`headrace coordinator` and `headrace agent`: the flags of the daemons, which start themselves."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.numbers import whole
from headrace.errors import BadInput, ServerFailed

_PR_SET_PDEATHSIG = 1


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("coordinator", rich_help_panel="Daemons")(coordinator)
    app.command("agent", rich_help_panel="Daemons")(agent)


def coordinator(
    *,
    data_dir: Annotated[Path | None, typer.Option(help="Where it keeps its state.")] = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT for clients and agents.")] = None,
    http_listen: Annotated[str | None, typer.Option(help="HOST:PORT of /metrics, /healthz and /readyz.")] = None,
    blob_listen: Annotated[str | None, typer.Option(help="HOST:PORT of the blob endpoint (file:// store).")] = None,
    database_url: Annotated[
        str | None, typer.Option(help="PostgreSQL; left out: an embedded one in the data directory.")
    ] = None,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    embedded: Annotated[bool, typer.Option("--embedded", hidden=True)] = False,
    local_paths: Annotated[bool, typer.Option("--local-paths", hidden=True)] = False,
    die_with: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> int:
    """Run the coordinator: it plans runs and hands jobs to agents."""
    _die_with(die_with, signal.SIGTERM)
    try:
        from coordinator.app import main
    except ImportError as error:
        raise _missing("coordinator", error) from error
    flags: dict[str, object] = {
        "data_dir": data_dir,
        "listen": listen,
        "http_listen": http_listen,
        "blob_listen": blob_listen,
        "database_url": database_url,
        "ready_fd": ready_fd,
        "embedded": embedded or None,
        "local_paths": local_paths or None,
    }
    return main(_given(flags))


def agent(
    *,
    name: Annotated[str | None, typer.Option(help="Unique in the fleet; left out: the machine's name.")] = None,
    pool: Annotated[str | None, typer.Option(help="The pool that it serves.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="A fact that jobs may require, as NAME=VALUE; may be repeated.")
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(parser=whole("--slots", 1, 1024), metavar="N", help="Jobs at a time; left out: one a core."),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where it keeps its state.")] = None,
    url: Annotated[str | None, typer.Option(help="The coordinator as HOST:PORT; several with commas.")] = None,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    local: Annotated[bool, typer.Option("--local", hidden=True)] = False,
    die_with: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> int:
    """Run an agent: it dials out to the coordinator and runs jobs in sandboxes. HEADRACE_TOKEN is its credential."""
    labels = pairs(label or [], "--label")
    _die_with(die_with, signal.SIGKILL)  # TERM would let it drain; its supervisors are found again by the next
    try:
        from agent.app import main
    except ImportError as error:
        raise _missing("agent", error) from error
    flags: dict[str, object] = {
        "name": name,
        "pool": pool,
        "labels": labels or None,
        "slots": slots,
        "data_dir": data_dir,
        "url": url,
        "ready_fd": ready_fd,
        "local": local or None,
    }
    return main(_given(flags))


def pairs(words: list[str], option: str) -> dict[str, str]:
    """`K=V` words as a mapping; BadInput names the one that is none, or that comes twice."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise BadInput(f"{option} {word!r} is not NAME=VALUE")
        if name in found:
            raise BadInput(f"{option} {name} is given twice")
        found[name] = value
    return found


def _given(flags: dict[str, object]) -> dict[str, object]:
    """Those that were given: the rest is for the environment, a file, or the default."""
    return {name: value for name, value in flags.items() if value is not None}


def _missing(extra: str, error: ImportError) -> ServerFailed:
    name = error.name or str(error)
    return ServerFailed(f"the {extra} needs {name}, which is not installed: pip install 'headrace[{extra}]'")


def _die_with(parent: int | None, number: signal.Signals) -> None:
    """Lets the kernel end this process when the owner that started it dies; an owner already dead ends it now."""
    if parent is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        raise ServerFailed(f"prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        raise ServerFailed("the process that started this one is gone")
