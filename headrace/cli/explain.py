"""The expanded graph of a pipeline as text: what starts it, what each job waits for, what would run. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from headrace.cli.output import span

if TYPE_CHECKING:
    from headrace.pipeline import Event, Explanation, Plan, PlannedJob, PlannedStage
    from headrace.pipeline.explaining import ExplainedJob
    from headrace.pipeline.plan import Concurrency
    from headrace.pipeline.values import Text

WIDTH = 100


def explained(plan: Plan, explanation: Explanation) -> str:
    """The graph. Lines are wrapped at `WIDTH` columns; a word that is longer stays whole."""
    verdict = "starts it" if explanation.starts else "does not start it"
    lines = [f"pipeline {plan.name}", f"{_event(explanation.event)} {verdict}: {explanation.reason}"]
    if plan.concurrency is not None:
        lines.append(f"its runs are in {_group(plan.concurrency)}")
    if plan.parameters:
        lines.append(f"parameters {', '.join(f'{name}={value}' for name, value in plan.parameters.items())}")
    lines += [f"note: {each}" for each in plan.warnings]
    about = {each.key: each for each in explanation.jobs}
    for index, stage in enumerate(plan.stages):
        lines += ["", *_stage(stage)]
        mine = [job for job in plan.jobs if job.stage == index]
        for _, cells in groupby(mine, key=lambda job: job.name):
            lines += _jobs(plan, list(cells), about)
    return "\n".join(wrapped for line in lines for wrapped in _wrapped(line))


def _event(event: Event) -> str:
    pull = event.pull_request
    if pull is not None:
        return f"a pull request to {pull.base}"
    words = {"push": "a push", "manual": "a run by hand", "schedule": "a schedule"}
    where = event.tag or event.branch
    return f"{words.get(event.type, event.type)}{f' of {where}' if where else ''}"


def _group(group: Concurrency) -> str:
    full = {
        "queue": "others wait",
        "cancel-older": "a newer one cancels the older",
        "cancel-newer": "a newer one is canceled",
    }
    return f"the group {group.group}: {group.limit} at a time, {full[group.when_full]}"


def _stage(stage: PlannedStage) -> Iterator[str]:
    target = f": environment {stage.environment}" if stage.environment else ""
    url = f", {_text(stage.url)}" if stage.environment and stage.url else ""
    yield f"stage {stage.name}{target}{url}"
    if stage.condition is not None:
        yield f"  judged later: `if: {' '.join(stage.condition.text.split())}`"
    approval = stage.approval
    if approval is not None:
        count = f"{approval.count} approvals" if approval.count > 1 else "an approval"
        whom = f" from {', '.join(approval.whom)}" if approval.whom else ""
        message = f": {_text(approval.message)}" if approval.message else ""
        yield f"  asks for {count}{whom} within {_days(approval.timeout_ms)}{message}"


def _jobs(plan: Plan, copies: list[PlannedJob], about: dict[str, ExplainedJob]) -> Iterator[str]:
    """One job, or all cells of a matrix: what they share once, and of each what is its own."""
    first = copies[0]
    shards = f", {first.shard.total} shards of each" if first.shard and first.matrix else ""
    cells = [each for each in copies if each.shard is None or each.shard.index == 1 or not each.matrix]
    if len(copies) == 1 and not first.matrix:
        yield f"  job {first.key}"
    else:
        group = next((each for each in plan.groups if each.name == first.name), None)
        most = f", {group.max_parallel} at a time" if group and group.max_parallel else ""
        fast = ", the first that fails cancels the others" if group and group.fail_fast else ""
        what = "cell" if first.matrix else "shard"
        yield f"  job {first.name}: {len(cells)} {what}{'s' * (len(cells) != 1)}{shards}{most}{fast}"
    if first.expands:
        yield from (
            f"    {line}" for line in (*_verdict(first, about[first.key]), *_shared(plan, first, about[first.key]))
        )
        return
    shared = [part for part in _where(first) if all(part in _where(each) for each in cells)]
    for cell in cells:
        own = [part for part in _where(cell) if part not in shared] if len(copies) > 1 or first.matrix else []
        verdict = list(_verdict(cell, about[cell.key]))
        if len(copies) > 1 or first.matrix:
            yield f"    {_label(cell)}{': ' * bool(own)}{', '.join(own)}"
        yield from (f"    {'  ' * bool(cell.matrix)}{line}" for line in verdict)
    yield f"    {', '.join(shared)}"
    yield from (f"    {line}" for line in _shared(plan, first, about[first.key]))


def _label(cell: PlannedJob) -> str:
    """How its key ends; one shard stands for all of its cell."""
    label = cell.key.removeprefix(cell.name)
    return label.replace(f",shard={cell.shard.index}]", "]") if cell.shard and cell.matrix else label


def _verdict(job: PlannedJob, about: ExplainedJob) -> Iterator[str]:
    """What its stage decides stands there already."""
    if job.skip:
        yield from (f"would not run: {each}" for each in about.reasons)
        return
    if job.expands:
        yield about.reasons[0]
    if job.condition is not None:
        yield f"judged once what it waits for has ended: `if: {' '.join(job.condition.text.split())}`"


def _where(job: PlannedJob) -> list[str]:
    place = f"image {_text(job.image)}" if job.image else f"sandbox {job.sandbox}"
    labels = [f"{name}={value}" for name, value in sorted(job.requires.items())]
    allowed = ["may fail with a warning"] if job.allow_failure else []
    return [place, f"network {job.network}", f"pool {job.pool}", *labels, *allowed]


def _shared(plan: Plan, job: PlannedJob, about: ExplainedJob) -> Iterator[str]:
    if job.needs is None and about.waits_for:
        names = dict.fromkeys(each.name for each in plan.jobs if each.stage < job.stage)
        yield f"waits for all earlier stages ({', '.join(names)})"
    else:
        names = dict.fromkeys(each.name for each in plan.jobs if each.key in set(about.waits_for))
        yield f"waits for {', '.join(names) or 'nothing'}"
    if about.looks_at:
        yield f"looks at {', '.join(about.looks_at)}: known only once it begins"
    if job.concurrency is not None:
        yield f"is in {_group(job.concurrency)}"
    if job.retry is not None and job.retry.max:
        on = f" on {', '.join(map(str, job.retry.on))}" if job.retry.on else ""
        yield f"is tried up to {job.retry.max + 1} times{on}"
    for step in job.steps:
        condition = f", if {' '.join(step.condition.text.split())}" if step.condition else ""
        yield f"step {step.number + 1}: {step.name}{condition}"
    for each in job.artifacts:
        yield f"keeps {each.name} ({', '.join(each.paths)}) when {each.when}"
    if job.junit:
        yield f"reports tests of {', '.join(job.junit)}"


def _days(ms: int) -> str:
    """`3 d`, where it is whole days, as people write it."""
    days, rest = divmod(ms, 86_400_000)
    return f"{days} d" if days and not rest else span(ms)


def _text(text: Text) -> str:
    """A text; what is not known yet as it stands in the file."""
    return text if isinstance(text, str) else "".join(_part(each) for each in text.parts)


def _part(part: object) -> str:
    return part if isinstance(part, str) else f"${{{{ {getattr(part, 'text', '').strip()} }}}}"


def _wrapped(line: str) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()))
    found = textwrap.wrap(
        line.strip(), WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return found or [""]
