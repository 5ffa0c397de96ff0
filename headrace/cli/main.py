"""The entry point: every command, and the one place where an error becomes a sentence and an exit code."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from headrace.cli import approve, daemons, files, fleet, run, runs
from headrace.cli.context import Context

PASSED, FAILED, BAD_INPUT, CANNOT, CANCELED = 0, 1, 2, 3, 130


def application() -> typer.Typer:
    """The commands, put together from their families."""
    app = typer.Typer(
        name="headrace",
        help="CI/CD on your own machines. Start with `headrace init`, then `headrace run`.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for family in (files, run, runs, approve, fleet, daemons):
        family.register(app)
    for each in app.registered_commands:
        each.callback = each.callback and _interruptible(each.callback)
    return app


class Interrupted(Exception):
    """Ctrl-C: the library would turn it into an exit code without a word."""


def _interruptible(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return command(*arguments, **named)
        except KeyboardInterrupt as error:
            raise Interrupted from error

    return call


def _version(value: bool) -> None:  # noqa: FBT001  # the form that typer calls
    if value:
        from importlib.metadata import version

        typer.echo(f"headrace {version('headrace')}")
        raise typer.Exit


def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """CI/CD on your own machines. Start with `headrace init`, then `headrace run`."""
    del version  # its callback has answered


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    code = invoke(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def invoke(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code; whatever goes wrong becomes a sentence on stderr."""
    context = Context(os.environ)
    try:
        result = application()(list(arguments), standalone_mode=False, prog_name="headrace", obj=context)
    except (KeyboardInterrupt, Interrupted):
        sys.stderr.write("\nheadrace: interrupted\n")
        return CANCELED
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # `headrace logs | head`: the reader has had enough
            return PASSED
        raise
    except Exception as error:  # the last line before a person: here it becomes a sentence
        return _said(error, context)
    return result if isinstance(result, int) else PASSED


def _said(error: Exception, context: Context) -> int:
    from headrace.errors import BadInput, HeadraceError

    if isinstance(error, typer.TyperException):
        message = error.format_message()
        if message:
            usage = message.startswith("Usage:")  # bare `headrace`: the help is no mistake that one could name
            sys.stderr.write(f"{message}\n" if usage else f"headrace: {message}\n")
        return BAD_INPUT
    if isinstance(error, typer.Abort):
        return CANCELED
    if context.environment.get("HEADRACE_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, HeadraceError):
        positions = isinstance(error, BadInput) and any(each.in_a_file for each in error.violations)
        sys.stderr.write(f"{error}\n" if positions else f"headrace: {error}\n")  # editors read the positions
        return error.exit_code
    if isinstance(error, OSError) and error.filename is not None:  # a file or folder that a person named, or must mend
        sys.stderr.write(f"headrace: {os.fsdecode(error.filename)}: {error.strerror}\n")
        return CANNOT
    sentence = " ".join(str(error).split()) or "it gave no reason"
    sys.stderr.write(
        f"headrace: this is a mistake of Headrace itself: {type(error).__name__}: {sentence} "
        "(HEADRACE_TRACEBACK=1 shows where)\n"
    )
    return CANNOT
