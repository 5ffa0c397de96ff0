"""Pipeline files loaded with what they include, and expanded; their mistakes as bad input."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import BadInput, ServerFailed, Violation

if TYPE_CHECKING:
    from headrace.pipeline import Event, Pipeline, Plan

Read = Callable[[str], bytes | None]
"""The bytes of a file of the repository by its path from the root; None: there is none."""
_FILE_LIMIT = 4 << 20


@dataclass(slots=True)
class Recording:
    """Reads for the loader, and keeps what it has read: exactly the files that a pipeline includes."""

    read: Read
    files: dict[str, bytes] = field(default_factory=dict)

    def __call__(self, path: str) -> bytes | None:
        """The file's bytes, None where there is none."""
        found = self.read(path)
        if found is not None:
            self.files[path] = found
        return found


@dataclass(frozen=True, slots=True)
class Loaded:
    """A pipeline file that was read whole, and the files that it includes by their paths in the repository."""

    pipeline: Pipeline
    included: Mapping[str, bytes]


def load_file(text: bytes, name: str, read: Read) -> Loaded:
    """The pipeline of a file.

    Raises:
        BadInput: with every mistake of the file and of those that it includes, as `file:line:column: message`.
        ServerFailed: the extra `cli` is not installed.

    """
    recording = Recording(read)
    with mistakes(name):
        from headrace.pipeline import load

        return Loaded(load(text, name, recording), recording.files)


def plan_of(pipeline: Pipeline, event: Event, *, only_job: str = "", sandbox: str = "") -> Plan:
    """The pipeline expanded for an event; raises as `load_file` does."""
    with mistakes(pipeline.file):
        from headrace.pipeline import SandboxKind, expand

        return expand(pipeline, event, only=only_job, sandbox=SandboxKind(sandbox) if sandbox else None)


def event_of(
    kind: str, branch: str, tag: str, changed: Sequence[str] | None, parameters: Mapping[str, str]
) -> Event | None:
    """The event that the options of `validate` describe, None where they describe none. Raises BadInput."""
    if not (kind or branch or tag or changed or parameters):
        return None
    kind = kind or "manual"
    if kind not in {"push", "pull_request", "schedule", "manual"}:
        raise BadInput(f"--event {kind}: there are push, pull_request, schedule and manual")
    if kind in {"push", "pull_request"} and not (branch or tag):
        needed = (
            "--branch or --tag: which was pushed?" if kind == "push" else "--branch: into which is it to be merged?"
        )
        raise BadInput(f"--event {kind} needs {needed}")
    if tag and (branch or kind not in {"push", "manual"}):
        raise BadInput("--tag goes with --event push or manual, and without --branch: an event has one of both")
    if parameters and kind != "manual":
        raise BadInput(f"--param goes with --event manual: a run by hand takes parameters, and {kind} has none")
    with mistakes("the event"):
        from headrace.pipeline import Event, PullRequest

    pull = PullRequest(0, "", branch) if kind == "pull_request" else None
    paths = None if changed is None else tuple(path.removeprefix("./") for path in changed)
    return Event(kind, "" if pull else branch, tag, params=parameters, pull_request=pull, changed=paths)


def sample_event(pipeline: Pipeline) -> Event:
    """A run by hand in which every parameter without a default has some value: to check a file, not to run it."""
    from headrace.pipeline import Event
    from headrace.pipeline.plan import ParameterType

    samples = {ParameterType.BOOL: "false", ParameterType.INT: "0", ParameterType.DOUBLE: "0"}
    declared = pipeline.triggers.parameters if pipeline.triggers else ()
    needed = [each for each in declared if each.default is None]
    return Event("manual", params={each.name: (*each.options, samples.get(each.type, ""))[0] for each in needed})


@contextmanager
def mistakes(name: str) -> Iterator[None]:
    """Makes mistakes of a pipeline, found as long as this lasts, bad input with their positions."""
    try:
        from headrace.pipeline import PipelineError
    except ImportError as error:
        raise ServerFailed(
            f"checking a pipeline needs {error.name}, which is not installed: pip install 'headrace[cli]'"
        ) from error
    try:
        yield
    except PipelineError as error:
        found = tuple(Violation(f"{each.file}:{each.line}:{each.column}", each.message) for each in error.problems)
        raise BadInput(f"{name} has {len(found)} mistake{'s' * (len(found) != 1)}", found) from error


def reader_below(root: Path) -> Read:
    """Reads regular files below a folder, for pipelines that lie on disk; no link leads out of it."""

    def read(path: str) -> bytes | None:
        target = root / path
        try:
            if target.is_symlink() or not target.is_file() or not target.resolve().is_relative_to(root.resolve()):
                return None
            with target.open("rb") as file:
                return file.read(_FILE_LIMIT)
        except OSError as error:
            raise BadInput(f"{target} cannot be read: {error.strerror or error}") from error

    return read


def root_of(path: Path) -> Path:
    """The repository that a pipeline file lies in; where there is none, its folder."""
    folder = path.absolute().parent
    return next((each for each in (folder, *folder.parents) if (each / ".git").exists()), folder)


def load_on_disk(path: Path, text: bytes) -> Loaded:
    """A pipeline file that lies on disk, with what it includes from its repository. Raises as `load_file` does: places
    in included files bear names that an editor finds from where the command was typed.
    """
    root = root_of(path)
    recording = Recording(reader_below(root))
    try:
        return load_file(text, str(path), recording)
    except BadInput as error:
        found = tuple(replace(each, where=_from_here(each.where, path, root, recording)) for each in error.violations)
        raise BadInput(error.sentence, found) from error


def _from_here(where: str, path: Path, root: Path, recording: Recording) -> str:
    name, line, column = where.rsplit(":", 2)
    if name not in recording.files or name == str(path):
        return where
    return f"{root / name if path.is_absolute() else os.path.relpath(root / name)}:{line}:{column}"
