"""`init`, `validate` and `schema`: work with pipeline files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headrace.pipeline import Event


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("init")(init)
    app.command("validate")(validate)
    app.command("schema")(schema)


def init(
    *,
    folder: Annotated[Path, typer.Argument(help="The repository; left out: where you are.")] = Path(),
) -> None:
    """Write a commented starter headrace.yml for what is found here."""
    from headrace.cli.output import say
    from headrace.cli.starter import starter
    from headrace.errors import BadInput

    target = folder / "headrace.yml"
    if not folder.is_dir():
        raise BadInput(f"there is no folder {folder}")
    name, text = starter(folder.resolve())
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise BadInput(f"{target} is there already: remove it first, or edit it") from error
    except OSError as error:
        raise BadInput(f"cannot write {target}: {error.strerror}") from error
    say(f"wrote {target} for {name}; next: headrace validate {target}, then headrace run")


def validate(
    *,
    files: Annotated[
        list[Path] | None, typer.Argument(help="Pipeline files; left out: headrace.yml where you are.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print the expanded graph, for an event.")] = False,
    event: Annotated[str, typer.Option(help="push, pull_request, schedule or manual.")] = "",
    branch: Annotated[str, typer.Option(help="The event's branch; of a pull request, its base.")] = "",
    tag: Annotated[str, typer.Option(help="The tag that was pushed.")] = "",
    changed: Annotated[list[str] | None, typer.Option(help="A path that was changed; may be repeated.")] = None,
    param: Annotated[list[str] | None, typer.Option(help="A parameter as K=V; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Check pipeline files: every mistake as file:line:column: message."""
    import sys

    from headrace.cli.daemons import pairs
    from headrace.cli.output import print_json, say
    from headrace.cli.plans import event_of
    from headrace.errors import BadInput

    parameters = pairs(param or [], "--param")
    meant = event_of(event, branch, tag, changed, parameters)
    if meant is not None and not explain:
        raise BadInput("what an event makes of a pipeline is shown by --explain: add it")
    shown: list[dict[str, object]] = []
    for path in files or [Path("headrace.yml")]:
        try:
            found, text = _checked(path, meant, explain=explain)
        except BadInput as error:
            shown.append({"file": str(path), "valid": False, **error.to_json()})
            if not as_json:
                sys.stderr.write(f"{error}\n")
        else:
            shown.append({"file": str(path), "valid": True, **found})
            if not as_json:
                say(text)
    if as_json:
        print_json({"files": shown})
    return 0 if all(each["valid"] for each in shown) else 2


def _checked(path: Path, event: Event | None, *, explain: bool) -> tuple[dict[str, object], str]:
    """What is found of a file, as JSON and as text; BadInput with its mistakes. Without an event: a run by hand."""
    from headrace.cli.plans import load_on_disk, plan_of, sample_event

    pipeline = load_on_disk(path, _read(path)).pipeline
    if not explain:
        plan = plan_of(pipeline, sample_event(pipeline))
        warnings = [f"\n{each}" for each in plan.warnings]
        return {}, f"{path}: valid, {len(plan.jobs)} job{'s' * (len(plan.jobs) != 1)}{''.join(warnings)}"
    from headrace.cli.explain import explained
    from headrace.pipeline import Event, explanation_to_json, plan_to_json
    from headrace.pipeline import explain as explanation_of

    event = event or Event()
    plan = plan_of(pipeline, event)
    explanation = explanation_of(pipeline, plan, event)
    found: dict[str, object] = {"plan": plan_to_json(plan), "explanation": explanation_to_json(explanation)}
    return found, explained(plan, explanation)


def schema() -> None:
    """Print the JSON Schema of pipeline files, for editors."""
    from headrace.cli.output import print_json
    from headrace.pipeline import schema as made

    print_json(made())


def _read(path: Path) -> bytes:
    from headrace.errors import BadInput

    try:
        return path.read_bytes()
    except OSError as error:
        hint = ": `headrace init` writes one" if isinstance(error, FileNotFoundError) else ""
        raise BadInput(f"{path}: {error.strerror or error}{hint}") from error
