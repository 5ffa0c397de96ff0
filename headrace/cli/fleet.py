"""`agents`, `drain` and `pools`: work with the fleet."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.context import Context, Need


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("agents")(agents)
    app.command("drain")(drain)
    app.command("pools")(pools)


def agents(
    context: typer.Context,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the agents."""
    from headrace.cli.output import clock, print_json, say, table
    from headrace.client.types import Presence

    command: Context = context.obj
    with command.client(Need.LIVE) as client:
        found = client.agents()
    if as_json:
        print_json(found)
        return
    if not found:
        say("there is no agent: start one with `headrace agent`")
        return
    rows = [
        (
            each.name,
            each.pool,
            str(each.presence),
            f"{each.busy}/{each.slots}",
            ",".join(f"{name}={value}" for name, value in sorted(each.labels.items())) or "-",
            ",".join(able.kind for able in each.sandboxes if not able.why_not) or "-",
            "; ".join(each.jobs) or "-",
            clock(each.seen_at) if each.presence == Presence.GONE else "now",
        )
        for each in found
    ]
    say(table(("AGENT", "POOL", "STATE", "BUSY", "LABELS", "SANDBOXES", "JOBS", "SEEN"), rows))
    for each in found:
        if each.sentence:
            say(f"{each.name}: {each.sentence}")


def drain(
    context: typer.Context,
    *,
    agent: Annotated[str, typer.Argument(help="The agent's name.")],
    undo: Annotated[bool, typer.Option("--undo", help="Let it take work again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Let an agent finish what it has and take nothing new."""
    from headrace.cli.output import print_json, say

    command: Context = context.obj
    with command.client(Need.LIVE) as client:
        found = client.drain(agent, undo=undo)
    if as_json:
        print_json(found)
    else:
        say(f"{found.name} is {found.presence}, {found.busy} of {found.slots} slots busy")
        if found.sentence:
            say(f"{found.name}: {found.sentence}")


def pools(
    context: typer.Context,
    *,
    action: Annotated[str | None, typer.Argument(help="pause or resume; left out: show the pools.")] = None,
    pool: Annotated[str | None, typer.Argument(help="The pool's name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the pools, or pause or resume one: a paused pool starts nothing."""
    from headrace.cli.output import print_json, say, table
    from headrace.errors import BadInput

    command: Context = context.obj
    if action not in {None, "pause", "resume"}:
        raise BadInput(f"{action!r}: give `headrace pools pause POOL` or `headrace pools resume POOL`")
    if action is not None and pool is None:
        raise BadInput(f"name the pool: `headrace pools {action} POOL`")
    with command.client(Need.LIVE) as client:
        if action is not None and pool is not None:
            changed = client.pause(pool, undo=action == "resume")
            if as_json:
                print_json(changed)
            else:
                say(f"pool {changed.name} is {'paused: it starts nothing' if changed.paused else 'at work'}")
            return
        found = client.pools()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            each.name,
            "paused" if each.paused else "at work",
            str(each.agents),
            f"{each.busy}/{each.slots}",
            str(each.queued),
        )
        for each in found
    ]
    say(table(("POOL", "STATE", "AGENTS", "BUSY", "QUEUED"), rows))
