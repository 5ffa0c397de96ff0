"""`runs`, `show`, `logs`, `cancel`, `retry` and `artifacts`: work with runs that are there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.context import Context, Link, Need
from headrace.cli.numbers import run_and_job, run_number, whole

if TYPE_CHECKING:
    from headrace.client import Artifact, Run, SyncClient

_TRY_MOST = (1 << 31) - 1


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (runs, show, logs, cancel, retry, artifacts):
        app.command(command.__name__)(command)


def repository_here(environment: Mapping[str, str]) -> str:
    """The repository around the working directory, as runs name it; empty where there is none."""
    from headrace.cli.source_git import GitError, UserGit
    from headrace.cli.source_snapshot import Repository

    git = UserGit(environment)
    try:
        git_dir, common = git.text("rev-parse", "--path-format=absolute", "--git-dir", "--git-common-dir").split("\n")
    except GitError:
        return ""
    try:
        top = Path(git.text("rev-parse", "--path-format=absolute", "--show-toplevel"))
    except GitError:  # a bare one
        top = None
    return str(Repository(Path(os.path.realpath(git_dir)), Path(os.path.realpath(common)), top).identity)


def the_run(context: Context, client: SyncClient, run_id: int | None) -> Run:
    """The run that a person means: by number, else the latest of this repository, else the latest of all."""
    from headrace.errors import NotFound

    if run_id is not None:
        return client.run(run_id)
    here = repository_here(context.environment)
    if here:
        try:
            return client.run(repository=here)
        except NotFound as error:
            raise NotFound(f"{here} has no run yet: start one with `headrace run`, or name a run") from error
    newest = client.runs(limit=1)
    if not newest:
        raise NotFound("there is no run yet: start one with `headrace run`")
    return client.run(newest[0].id)


def runs(
    context: typer.Context,
    *,
    every: Annotated[bool, typer.Option("--all", help="Of all repositories, not of this one alone.")] = False,
    limit: Annotated[
        int, typer.Option(parser=whole("--limit", 1, 200), metavar="N", help="How many, the newest first.")
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List runs, the newest first."""
    from headrace.cli.output import clock, print_json, say, span, table
    from headrace.cli.sentences import stands

    command: Context = context.obj
    with command.client(Need.READ) as client:
        found = client.runs(repository="" if every else repository_here(command.environment), limit=limit)
    if as_json:
        print_json(found)
    elif not found:
        say("no run yet: start one with `headrace run`")
    else:
        rows = [
            (
                str(each.id), stands(each), each.pipeline, each.source.branch or each.source.tag or "-",
                each.source.description or each.source.commit[:7], clock(each.created_at),
                span(each.took_ms),
            )
            for each in found
        ]  # fmt: skip
        say(table(("RUN", "STATE", "PIPELINE", "BRANCH", "SOURCE", "CREATED", "TOOK"), rows))


def show(
    context: typer.Context,
    *,
    run: Annotated[
        int | None,
        typer.Argument(parser=run_number, metavar="RUN", help="Its number; left out: the latest of this repository."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a run: its jobs, where the time went, what failed, what it waits for."""
    from headrace.cli.output import print_json, write

    command: Context = context.obj
    with command.client(Need.READ) as client:
        found = the_run(command, client, run)
    if as_json:
        print_json(found)
        return
    from rich.console import Console

    from headrace.cli.showing import page

    console = Console(highlight=False, soft_wrap=True)
    with console.capture() as shown:
        for line in page(found):
            console.print(line)
    write(shown.get())


def logs(
    context: typer.Context,
    *,
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Its number; left out: the latest of this repository.")
    ] = None,
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="The job's key; may be left out where it is plain.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the log is complete.")] = False,
    attempt: Annotated[
        int,
        typer.Option(parser=whole("--attempt", 0, _TRY_MOST), metavar="N", help="Which try; left out: the newest."),
    ] = 0,
    offset: Annotated[int, typer.Option(parser=whole("--offset", 0), metavar="N", help="The first byte wanted.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON record a line.")] = False,
) -> None:
    """Print the log of a job, byte for byte where the output is not a terminal."""
    from headrace.cli.tailing import print_log

    command: Context = context.obj
    number, key = run_and_job(run, job)
    with command.link(Need.READ) as link, link.sync_client() as client:
        found = the_run(command, client, number)
        key = key or the_job(found)
        # Without an agent nothing will ever follow: what is there is all there is.
        follow = follow and (link.endpoint is None or link.endpoint.agent)
        print_log(client.tail(found.id, key, attempt=attempt, offset=offset, follow=follow), as_json=as_json)


def the_job(run: Run) -> str:
    """The job that a person means who names none: the only one, else the only one that failed or runs."""
    from headrace.client.types import JobState
    from headrace.errors import BadInput

    if len(run.jobs) == 1:
        return run.jobs[0].key
    for state in (JobState.FAILED, JobState.RUNNING):
        found = [job.key for job in run.jobs if job.state == state]
        if len(found) == 1:
            return found[0]
    keys = ", ".join(job.key for job in run.jobs)
    raise BadInput(f"run {run.id} has several jobs: name one of {keys}")


def cancel(
    context: typer.Context,
    *,
    run: Annotated[int, typer.Argument(parser=run_number, metavar="RUN", help="Its number.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Cancel a run with grace; a second time kills it."""
    from headrace.cli.output import print_json, say

    command: Context = context.obj
    with command.client(Need.LIVE) as client:
        found = client.cancel(run, reason="canceled by hand")
    if as_json:
        print_json(found)
    else:
        say(f"run {found.id} is {found.state}" + ("" if found.ended else ", and is being canceled"))


def retry(
    context: typer.Context,
    *,
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Its number; left out: the latest of this repository.")
    ] = None,
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="The job's key; left out: every job that did not pass.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: events where the run is followed.")] = False,
) -> int:
    """Run a job, and what depends on it, again: same commit, same pipeline."""
    from headrace.cli.output import print_json, say
    from headrace.cli.summary import how_to_follow

    command: Context = context.obj
    number, key = run_and_job(run, job)
    with command.link(Need.WORK) as link:
        with link.sync_client() as client:
            found = client.retry(the_run(command, client, number).id, job=key or "")
        if link.owner is not None:  # nobody else would do the work: stay until it is done
            return _followed(link, found, command.settings.state, as_json=as_json)
    if as_json:
        print_json(found)
    else:
        say(f"run {found.id} is {found.state}; {how_to_follow(found)}")
    return 0


def _followed(link: Link, run: Run, state: Path, *, as_json: bool) -> int:
    import asyncio

    from headrace.cli.working import see_through

    async def through() -> int:
        async with link.client() as client:
            return await see_through(link, client, run, state, as_json=as_json, after_retry=True)

    return asyncio.run(through())


def artifacts(
    context: typer.Context,
    *,
    run: Annotated[
        int | None,
        typer.Argument(parser=run_number, metavar="RUN", help="Its number; left out: the latest of this repository."),
    ] = None,
    download: Annotated[Path | None, typer.Option(help="Write them to DIR/NAME/.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the artifacts of a run, or download them."""
    from headrace.cli.output import print_json, say, table
    from headrace.client.paths import inside
    from headrace.errors import BadInput

    command: Context = context.obj
    folders: dict[str, str] = {}
    with command.client(Need.READ) as client:
        chosen = the_run(command, client, run)
        found = client.artifacts(chosen.id)
        # What has expired comes last: all else is saved before the sentence that says so.
        for each in sorted(found, key=lambda one: one.expired) if download is not None else ():
            folder = inside(download or Path(), each.name)
            try:
                client.download(chosen.id, each.name, folder)
            except OSError as error:
                raise BadInput(f"cannot write to {folder}: {error.strerror}; name another folder") from error
            folders[each.name] = str(folder)
    if as_json:
        print_json({"run": chosen.id, "artifacts": [each.to_json() for each in found], "folders": folders})
    elif not found:
        say(f"run {chosen.id} has no artifacts")
    else:
        rows = [(each.name, each.job, *_extent(each), folders.get(each.name, "-")) for each in found]
        say(table(("ARTIFACT", "JOB", "FILES", "SIZE", "SAVED IN"), rows))


def _extent(artifact: Artifact) -> tuple[str, str]:
    """How many files it has, and their size."""
    from headrace.cli.output import size

    return ("-", "expired") if artifact.expired else (str(len(artifact.files)), size(artifact.size))
