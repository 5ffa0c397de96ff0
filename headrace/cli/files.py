"""`init` and `validate`: work with pipeline files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headrace.pipeline.plan import Plan


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("init")(init)
    app.command("validate")(validate)


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
    files: Annotated[list[Path], typer.Argument(help="Pipeline files.")],
    explain: Annotated[bool, typer.Option("--explain", help="Print the expanded graph.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Check pipeline files: every mistake as file:line:column: message."""
    import sys

    from headrace.cli.explain import explained
    from headrace.cli.output import print_json, say
    from headrace.cli.plans import load_on_disk, plan_json, plan_of, sample_event
    from headrace.errors import BadInput

    shown: list[dict[str, object]] = []
    wrong = False
    for path in files:
        try:
            pipeline = load_on_disk(path, _read(path)).pipeline
            plan: Plan = plan_of(pipeline, sample_event(pipeline))
        except BadInput as error:
            wrong = True
            shown.append({"file": str(path), "valid": False, **error.to_json()})
            if not as_json:
                sys.stderr.write(f"{error}\n")
        else:
            shown.append({"file": str(path), "valid": True, **({"plan": plan_json(plan)} if explain else {})})
            if not as_json:
                say(explained(plan) if explain else f"{path}: valid, {len(plan.jobs)} job{'s' * (len(plan.jobs) != 1)}")
    if as_json:
        print_json({"files": shown})
    return 2 if wrong else 0


def _read(path: Path) -> bytes:
    from headrace.errors import BadInput

    try:
        return path.read_bytes()
    except OSError as error:
        hint = ": `headrace init` writes one" if isinstance(error, FileNotFoundError) else ""
        raise BadInput(f"{path}: {error.strerror or error}{hint}") from error
