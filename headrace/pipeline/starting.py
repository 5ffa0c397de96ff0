"""Whether an event starts a pipeline, and which filter of `on` said so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.pipeline.event import Event
from headrace.pipeline.globs import Patterns
from headrace.pipeline.model import PushDef, Triggers
from headrace.pipeline.problems import shown


@dataclass(frozen=True, slots=True)
class Start:
    """The verdict. `reason`: the filter that decided, as a part of a sentence."""

    starts: bool
    reason: str


def start(triggers: Triggers | None, event: Event) -> Start:
    """Whether an event starts the pipeline with these triggers (None: it has no `on`).

    `event.changed` None: the changed paths are not known, and every filter of paths holds. A run by hand starts every
    pipeline: who asks for it means it. Without `on`, every push and pull request does too.
    """
    match event.type:
        case "manual":
            return Start(starts=True, reason="any pipeline can be started so")
        case "push":
            return _pushed(triggers, event)
        case "pull_request":
            return _requested(triggers, event)
        case "schedule":
            return _scheduled(triggers, event)
        case other:
            return Start(starts=False, reason=f"{shown(other)} is no event that starts pipelines")


def _pushed(triggers: Triggers | None, event: Event) -> Start:
    if triggers is None:
        return Start(starts=True, reason="without `on`, every push starts it")
    push = triggers.push
    if push is None:
        return Start(starts=False, reason="`on` names no `push`")
    kind, ref, globs, others = ("branch", event.branch, push.branches, push.tags)
    if event.tag:
        kind, ref, globs, others = ("tag", event.tag, push.tags, push.branches)
    if not globs and others:
        plural = {"branch": "tags", "tag": "branches"}[kind]
        return Start(starts=False, reason=f"`on.push` names {plural} alone, and this is the {kind} {shown(ref)}")
    verdict = _ref(kind, ref, globs, f"on.push.{'tags' if event.tag else 'branches'}", "every push")
    # What a tag points to was pushed before: it changes no path.
    return verdict if event.tag or not verdict.starts else _paths(push, event.changed, "on.push", verdict)


def _requested(triggers: Triggers | None, event: Event) -> Start:
    if triggers is None:
        return Start(starts=True, reason="without `on`, every pull request starts it")
    pull = triggers.pull_request
    if pull is None:
        return Start(starts=False, reason="`on` names no `pull_request`")
    base = event.pull_request.base if event.pull_request else ""
    verdict = _ref("base branch", base, pull.branches, "on.pull_request.branches", "every pull request")
    return verdict if not verdict.starts else _paths(pull, event.changed, "on.pull_request", verdict)


def _scheduled(triggers: Triggers | None, event: Event) -> Start:
    schedules = triggers.schedule if triggers else ()
    if not schedules:
        return Start(starts=False, reason="`on` names no `schedule`")
    found = [each for each in schedules if not each.branch or each.branch == event.branch]
    if not found:
        branches = ", ".join(shown(each.branch) for each in schedules)
        return Start(starts=False, reason=f"the schedules are for {branches}, and this is {shown(event.branch)}")
    times = ", ".join(f"{each.cron} ({each.timezone})" for each in found)
    return Start(starts=True, reason=f"`on.schedule` names {times}")


def _ref(kind: str, ref: str, globs: Sequence[str], where: str, every: str) -> Start:
    if not globs:
        return Start(starts=True, reason=f"`on` names {every}")
    for glob in globs:
        if ref_matches(glob, ref):
            return Start(starts=True, reason=f"the {kind} {shown(ref)} matches {shown(glob)} of `{where}`")
    return Start(starts=False, reason=f"the {kind} {shown(ref)} matches none of `{where}`: {_listed(globs)}")


def _paths(push: PushDef, changed: Sequence[str] | None, where: str, verdict: Start) -> Start:
    """Some changed path has to be among `paths`, and not among `paths-ignore`."""
    if changed is None or not (push.paths or push.paths_ignore):
        return verdict
    if not changed:
        return Start(starts=False, reason=f"no path was changed, and `{where}` names paths")
    named = changed
    if push.paths:
        wanted = Patterns(push.paths)
        named = [path for path in changed if wanted.means(path)]
        if not named:
            return Start(starts=False, reason=f"no changed path matches `{where}.paths`: {_listed(push.paths)}")
    ignored = Patterns(push.paths_ignore)
    for path in named:
        if not ignored.means(path):
            return Start(starts=True, reason=f"{verdict.reason}, and {shown(path)} was changed")
    which = "every changed path" if len(named) == len(changed) else "every changed path that `paths` names"
    return Start(starts=False, reason=f"{which} is among `{where}.paths-ignore`: {_listed(push.paths_ignore)}")


def _listed(globs: Sequence[str]) -> str:
    more = f" and {len(globs) - 10} more" if len(globs) > 10 else ""
    return ", ".join(shown(each) for each in globs[:10]) + more


def ref_matches(glob: str, ref: str) -> bool:
    """Whether a glob means a branch or a tag: `*` within a part, `**` over parts; all else is taken as it is written.

    `release/*` means `release/1` and not `release/1/x`; `release/**` means both, and not `release`; `**` means all. The
    time is bounded by the product of the lengths, whatever the glob.
    """
    if not ref:
        return False
    parts = glob.split("/")
    places = _closed({0}, parts)
    for part in ref.split("/"):
        reached = set()
        for at in places:
            if at == len(parts):
                continue
            if parts[at] == "**":
                reached |= {at, at + 1}
            elif _part_matches(parts[at], part):
                reached.add(at + 1)
        places = _closed(reached, parts)
    return len(parts) in places


def _closed(places: set[int], parts: Sequence[str]) -> set[int]:
    """Adds the places behind a `**` that stands for no part at all, as it may anywhere but at the end."""
    found = set(places)
    for at, part in enumerate(parts[:-1]):
        if at in found and part == "**":
            found.add(at + 1)
    return found


def _part_matches(glob: str, text: str) -> bool:
    """`*` stands for any letters, none too. What stands between the stars is looked for from the left."""
    first, *rest = glob.split("*")
    if not rest:
        return glob == text
    *middle, last = rest
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    at, end = len(first), len(text) - len(last)
    for each in middle:
        found = text.find(each, at, end)
        if found < 0:
            return False
        at = found + len(each)
    return True
