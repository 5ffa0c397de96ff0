"""`run` and `up`: start a run and follow it; hold a coordinator in the foreground."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.context import Context, Link, Need
from headrace.cli.daemons import pairs

if TYPE_CHECKING:
    from headrace.cli.source import Source
    from headrace.cli.working import Wanted


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("run")(run)
    app.command("up")(up)


def run(
    context: typer.Context,
    *,
    file: Annotated[str, typer.Argument(help="The pipeline file, below the top of the repository.")] = "headrace.yml",
    repo: Annotated[
        str | None, typer.Option(help="Path or URL of the repository; left out: the one around you.")
    ] = None,
    ref: Annotated[str | None, typer.Option(help="Branch, tag or commit; left out: what is on disk now.")] = None,
    param: Annotated[list[str] | None, typer.Option(help="A parameter as K=V; may be repeated.")] = None,
    job: Annotated[str, typer.Option(help="Run this job alone, with its needs.")] = "",
    sandbox: Annotated[str, typer.Option(help="docker, bubblewrap or host, for every job that names none.")] = "",
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait; needs a coordinator that stays.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON event a line.")] = False,
) -> int:
    """Start a run, show it live, and exit with its outcome."""
    import asyncio

    from headrace.cli.working import wanted_run, work
    from headrace.errors import BadInput

    command: Context = context.obj
    if sandbox not in {"", "docker", "bubblewrap", "host"}:
        raise BadInput(f"--sandbox {sandbox}: there are docker, bubblewrap and host")
    parameters = pairs(param or [], "--param")
    source = resolved(command, repo, ref)
    wanted = wanted_run(source, file, Path.cwd(), parameters=parameters, job=job, sandbox=sandbox)
    with command.link(Need.WORK) as link:
        if detach:
            return _detached(link, wanted, as_json=as_json)
        return asyncio.run(work(link, wanted, command.settings.state, as_json=as_json))


def resolved(command: Context, repo: str | None, ref: str | None) -> Source:
    """The source that a person means; BadInput with the sentence where there is none."""
    from headrace.cli.embedded import unusable
    from headrace.cli.source import SourceError, resolve
    from headrace.errors import BadInput

    settings = command.settings
    try:
        return resolve(repo, ref, Path.cwd(), state=settings.state / "sources", environment=command.environment)
    except SourceError as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        if error.filename is None or not Path(os.fsdecode(error.filename)).is_relative_to(settings.state):
            raise
        raise unusable(settings.state, error) from error


def _detached(link: Link, wanted: Wanted, *, as_json: bool) -> int:
    import asyncio

    from headrace.cli.output import print_json, say
    from headrace.cli.summary import how_to_follow
    from headrace.cli.working import create
    from headrace.errors import BadInput

    if link.owner is not None:
        raise BadInput("--detach needs a coordinator that stays: start `headrace up` in another terminal")

    async def started() -> None:
        async with link.client() as client:
            run = await create(client, link, wanted)
        if as_json:
            print_json(run)
        else:
            say(f"run {run.id}; {how_to_follow(run)}")

    asyncio.run(started())
    return 0


def up(
    context: typer.Context,
    *,
    listen: Annotated[
        str | None, typer.Option(help="HOST:PORT for clients and agents; left out: HEADRACE_LISTEN, 127.0.0.1:7433.")
    ] = None,
    http_listen: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of /metrics, /healthz and /readyz; left out: HEADRACE_HTTP_LISTEN, 127.0.0.1:7434."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the addresses as JSON.")] = False,
) -> int:
    """Run a coordinator with its own PostgreSQL and one agent, in the foreground."""
    from headrace.cli.standing import stand

    command: Context = context.obj
    environment = command.environment
    return stand(
        command.settings,
        listen=listen or environment.get("HEADRACE_LISTEN") or "127.0.0.1:7433",
        http_listen=http_listen or environment.get("HEADRACE_HTTP_LISTEN") or "127.0.0.1:7434",
        as_json=as_json,
    )
