"""`approve`: a person's decision about a stage that waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.context import Context, Need
from headrace.cli.numbers import run_number

if TYPE_CHECKING:
    from headrace.client.types import Run, Stage


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("approve")(approve)


def approve(
    context: typer.Context,
    *,
    run: Annotated[int, typer.Argument(parser=run_number, metavar="RUN", help="Its number.")],
    stage: Annotated[str, typer.Option(help="Which stage; left out: the one that waits.")] = "",
    reject: Annotated[bool, typer.Option("--reject", help="Refuse it: the stage is canceled.")] = False,
    comment: Annotated[str, typer.Option(help="Why; kept and shown.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Approve the stage of a run that waits for it, or reject it."""
    from headrace.cli.output import print_json, say

    command: Context = context.obj
    with command.client(Need.LIVE) as client:
        # What the person means is named to the coordinator: meanwhile another stage may have come to wait.
        meant = the_stage(client.run(run), stage)
        found = client.approve(run, meant.name, reject=reject, comment=comment)
    if as_json:
        print_json(found)
    else:
        say(outcome(found, meant.name, reject=reject))


def the_stage(run: Run, wanted: str) -> Stage:
    """The stage that a person decides about: the one that waits for an approval, among several the one named."""
    from headrace.cli.sentences import waiting
    from headrace.errors import BadInput, Conflict, NotFound

    asked = waiting(run)
    names = ", ".join(each.name for each in asked)
    if wanted and wanted not in {each.name for each in run.stages}:
        stages = ", ".join(each.name for each in run.stages)
        raise NotFound(f"run {run.id} has no stage {wanted}: it has {stages}")
    if not asked:
        raise Conflict(f"run {run.id} waits for no approval: it is {run.state}")
    found = [each for each in asked if wanted in {"", each.name}]
    if not found:
        raise Conflict(f"the stage {wanted} of run {run.id} waits for no approval: {names} does")
    if len(found) > 1:
        raise BadInput(f"several stages of run {run.id} wait for an approval: name one of {names} with --stage")
    return found[0]


def outcome(run: Run, stage: str, *, reject: bool) -> str:
    """What has come of a decision: whether more of them are needed, and how the run stands."""
    approval = next((each.approval for each in run.stages if each.name == stage), None)
    if approval is not None and approval.asked:
        approved = sum(each.approved for each in approval.decisions)
        return f"run {run.id}: the stage {stage} has {approved} of {approval.count} approvals"
    return f"run {run.id}: the stage {stage} is {'rejected' if reject else 'approved'}, the run is {run.state}"
