"""What `run` and `retry` do once they have a coordinator: create, follow, sum up, keep the artifacts."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from headrace.cli import output
from headrace.cli.board import Board
from headrace.cli.context import Link
from headrace.cli.embedded import Owner
from headrace.cli.follow import Follower, Interrupts, follow_interruptibly, interrupts_to
from headrace.cli.source import NoSuchFile, Source, SourceError, in_repository, make_bundle
from headrace.cli.summary import exit_code, summary
from headrace.cli.views import Events, Plain, View
from headrace.client import Artifact, Client, Run
from headrace.client import Source as WireSource
from headrace.client.types import RunState
from headrace.errors import BadInput, Corrupt, HeadraceError

CANCELED = 130
_LAST_WORD_WITHIN = 10.0
"""Seconds for the cancel of a run that was interrupted while it was being created."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A run that a person asked for. `text` is the pipeline file as it is in the source's tree, `included` what it
    includes, by path.
    """

    source: Source
    file: str
    text: bytes
    parameters: Mapping[str, str]
    job: str = ""
    sandbox: str = ""
    included: Mapping[str, bytes] = field(default_factory=dict)


def wanted_run(
    source: Source, file: str, cwd: Path, *, parameters: Mapping[str, str], job: str, sandbox: str
) -> Wanted:
    """What is to be run, from the very tree that is built. Every mistake is said before anything is started for it,
    as BadInput; what looks like a slip is noted.
    """
    from headrace.cli.plans import load_file, plan_of

    file, text = load_text(source, file, cwd)
    loaded = load_file(text, file, _reader_of(source))
    from headrace.pipeline import Event

    event = Event("manual", branch=source.branch, tag=source.tag, commit=source.commit, params=parameters)
    for warning in plan_of(loaded.pipeline, event, only_job=job, sandbox=sandbox).warnings:
        output.note(warning)
    return Wanted(source, file, text, parameters, job, sandbox, loaded.included)


def _reader_of(source: Source) -> Callable[[str], bytes | None]:
    def read(path: str) -> bytes | None:
        try:
            return source.read_file(path)
        except NoSuchFile:
            return None
        except SourceError as error:
            raise BadInput(str(error)) from error

    return read


def load_text(source: Source, file: str, cwd: Path) -> tuple[str, bytes]:
    """The pipeline file of a source, from the repository's top; BadInput names what to do where there is none."""
    try:
        file = in_repository(file, source, cwd)
        return file, source.read_file(file)
    except NoSuchFile as error:
        sentence = str(error).rstrip(".")
        raise BadInput(f"{sentence}: `headrace init` writes a headrace.yml to begin with") from error
    except SourceError as error:
        raise BadInput(str(error)) from error


async def create(client: Client, link: Link, wanted: Wanted) -> Run:
    """Starts the run; a path is handed to a coordinator elsewhere as a bundle."""
    source = wanted.source
    path = url = bundle = ""
    if source.is_url:
        url = source.fetch_from
    elif link.endpoint is not None:
        path = source.fetch_from
    else:
        bundle = await _send_bundle(client, source)
    creating = client.create_run(
        WireSource(
            repository=source.repository,
            commit=source.commit,
            path=path,
            url=url,
            bundle_sha256=bundle,
            branch=source.branch,
            tag=source.tag,
            description=source.description,
            own_code=bool(path),
        ),
        wanted.text,
        pipeline_file=wanted.file,
        parameters=wanted.parameters,
        only_job=wanted.job,
        sandbox=wanted.sandbox,
        included=wanted.included,
    )
    return await _canceled_if_interrupted(client, creating)


async def _canceled_if_interrupted(client: Client, creating: Coroutine[None, None, Run]) -> Run:
    """Ctrl-C while a run is being created must not leave one behind that nobody has heard of."""
    task, interrupted = asyncio.create_task(creating, name="create"), asyncio.Event()
    waiting = asyncio.create_task(interrupted.wait(), name="interrupt")
    with interrupts_to(interrupted.set):
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not interrupted.is_set():
            return await task
        with suppress(HeadraceError, TimeoutError):
            async with asyncio.timeout(_LAST_WORD_WITHIN):
                await client.cancel((await task).id, reason="interrupted by the person who started it")
    raise KeyboardInterrupt


async def _send_bundle(client: Client, source: Source) -> str:
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        target = Path(folder) / "source.bundle"
        try:
            await asyncio.to_thread(make_bundle, source, target)
        except SourceError as error:
            raise BadInput(str(error)) from error
        return await client.send_bundle(target)


async def work(link: Link, wanted: Wanted, state: Path, *, as_json: bool) -> int:
    """Creates a run and sees it to its end; returns the exit code."""
    async with link.client() as client:
        run = await create(client, link, wanted)
        return await see_through(link, client, run, state, as_json=as_json)


async def see_through(
    link: Link, client: Client, run: Run, state: Path, *, as_json: bool, after_retry: bool = False
) -> int:
    """Follows a run, prints its summary, and as an owner waits for the runs of others.

    The exit code is the run's, also where nobody reads the output to its end.
    """
    with output.droppable():
        return await _seen_through(link, client, run, state, as_json=as_json, after_retry=after_retry)


async def _seen_through(link: Link, client: Client, run: Run, state: Path, *, as_json: bool, after_retry: bool) -> int:
    view = view_for(as_json=as_json)
    interrupts = Interrupts(client, view)
    interrupts.run_id = run.id
    follower = Follower(client, run, view, after_retry=after_retry)
    processes = link.owner.processes if link.owner else None
    with interrupts.caught():
        ended = await follow_interruptibly(follower, interrupts, processes)
        if ended is None:
            output.note(f"run {run.id} was killed")
            return CANCELED
        await _show_end(link, client, follower.board, state, as_json=as_json)
    if link.owner is not None:
        await _interruptible(wait_for_others(client, link.owner))
    return CANCELED if interrupts.count else exit_code(ended)


async def _interruptible(waiting: Coroutine[None, None, None]) -> None:
    """Waits until that is over or a person has had enough. What goes wrong is said: the run's outcome stands."""
    task = asyncio.create_task(waiting, name="wait for others")
    with interrupts_to(task.cancel):
        await asyncio.wait([task])
    try:
        await task
    except asyncio.CancelledError:
        output.note("not waiting any longer")
    except HeadraceError as error:
        output.note(f"the runs of others could not be waited for: {error}")


def view_for(*, as_json: bool) -> View:
    """JSON events, or a live tree where somebody looks, or plain lines."""
    if as_json:
        return Events()
    if sys.stdout.isatty():
        from headrace.cli.live import view

        return view()
    return Plain()


async def _show_end(link: Link, client: Client, board: Board, state: Path, *, as_json: bool) -> None:
    run = board.whole()
    try:
        artifacts = await client.artifacts(run.id)
    except HeadraceError as error:  # how the run ended is known: that is the outcome of this command
        output.note(f"the artifacts of run {run.id} could not be listed: {error}")
        artifacts = []
    folders = await _save(client, run, artifacts, state) if link.endpoint is not None else {}
    if as_json:
        for each in artifacts:
            output.print_event({
                "event": "artifact", "artifact": each.to_json(), "folder": folders.get(each.name),
            })  # fmt: skip
        output.print_event({"event": "end", "run": run.to_json(), "exit_code": exit_code(run)})
        return
    for line in summary(board, artifacts, folders):
        output.say(line)


async def _save(client: Client, run: Run, artifacts: list[Artifact], state: Path) -> dict[str, str]:
    """Artifacts of a local run are put where a person can open them."""
    from headrace.client.paths import inside

    folders = {}
    for each in artifacts:
        try:
            folder = inside(state / "artifacts" / str(run.id), each.name)
            await client.download(run.id, each.name, folder)
            folders[each.name] = str(folder)
        except (HeadraceError, Corrupt) as error:
            output.note(f"artifact {output.plain(each.name)} could not be saved: {error}")
    return folders


async def wait_for_others(client: Client, owner: Owner) -> None:
    """An owner whose run has ended stays until the runs of others have ended too, also those that come meanwhile.

    Only when nobody can find the coordinator any more is an empty list the last word.
    """
    while True:
        for run in await _living(client):
            output.note(f"waiting for run {run.id}, which was started by another command (Ctrl-C ends it)")
            async with aclosing(client.watch(run.id)) as changes:
                async for change in changes:
                    now = change.snapshot or change.run
                    if now is not None and now.state == RunState.BLOCKED:  # it waits for a person, nobody for it
                        break
        owner.withdraw()
        if not await _living(client):
            return
        owner.offer()


async def _living(client: Client) -> list[Run]:
    return [run for run in await client.runs(limit=200) if not run.ended and run.state != RunState.BLOCKED]
