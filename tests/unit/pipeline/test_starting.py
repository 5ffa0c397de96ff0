"""Which events start a pipeline, and what is said of those that do not."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline import Event, PipelineError, PullRequest, load
from headrace.pipeline.model import PushDef, Triggers
from headrace.pipeline.starting import ref_matches, start

ON = """
on:
  push: {branches: [main, "release/*"], tags: ["v*"], paths: ["src/**", "*.toml"], paths-ignore: ["**/*.md"]}
  pull_request: {branches: [main], paths: [src]}
  schedule: [{cron: "0 3 * * *", branch: main}, {cron: "0 4 * * *", branch: next}]
"""
STAGES = "stages: [{name: a, jobs: {b: {steps: [{run: 'true'}]}}}]\n"


def triggers(on: str) -> Triggers | None:
    return load((on + STAGES).encode(), "headrace.yml").triggers


def push(branch: str = "", tag: str = "", changed: tuple[str, ...] | None = None) -> Event:
    return Event("push", branch=branch, tag=tag, changed=changed)


def pull(base: str, changed: tuple[str, ...] | None = None) -> Event:
    return Event("pull_request", pull_request=PullRequest(1, "topic", base), changed=changed)


@pytest.mark.parametrize(
    ("event", "verdict", "reason"),
    [
        (push("main"), True, "the branch `main` matches `main` of `on.push.branches`"),
        (push("release/1.0"), True, "the branch `release/1.0` matches `release/*` of `on.push.branches`"),
        (push("dev"), False, "the branch `dev` matches none of `on.push.branches`: `main`, `release/*`"),
        (push(tag="v1"), True, "the tag `v1` matches `v*` of `on.push.tags`"),
        (push(tag="x1"), False, "the tag `x1` matches none of `on.push.tags`: `v*`"),
        (push(tag="v1", changed=("README.md",)), True, "the tag `v1` matches `v*` of `on.push.tags`"),
        (
            push("main", changed=("docs/x", "src/a/b.py")),
            True,
            "the branch `main` matches `main` of `on.push.branches`, and `src/a/b.py` was changed",
        ),
        (push("main", changed=("docs/x",)), False, "no changed path matches `on.push.paths`: `src/**`, `*.toml`"),
        (
            push("main", changed=("docs/x", "src/a.md")),
            False,
            "every changed path that `paths` names is among `on.push.paths-ignore`: `**/*.md`",
        ),
        (push("main", changed=()), False, "no path was changed, and `on.push` names paths"),
        (pull("main"), True, "the base branch `main` matches `main` of `on.pull_request.branches`"),
        (pull("dev"), False, "the base branch `dev` matches none of `on.pull_request.branches`: `main`"),
        (pull("main", ("docs/x",)), False, "no changed path matches `on.pull_request.paths`: `src`"),
        (Event("schedule", branch="next"), True, "`on.schedule` names 0 4 * * * (UTC)"),
        (Event("schedule", branch="old"), False, "the schedules are for `main`, `next`, and this is `old`"),
        (Event("manual", branch="dev"), True, "any pipeline can be started so"),
        (Event("comet"), False, "`comet` is no event that starts pipelines"),
    ],
)
def test_the_filter_that_decided_is_named(event: Event, verdict: object, reason: str) -> None:
    """`Why did my push start nothing` is asked every week: the answer is one filter."""
    found = start(triggers(ON), event)
    assert (found.starts, found.reason) == (verdict, reason)


@pytest.mark.parametrize("event", [push("any"), push(tag="any"), pull("any"), Event("manual")])
def test_without_on_every_push_pull_request_and_run_by_hand_starts_it(event: Event) -> None:
    """The shortest file does the usual thing; only a time has to be named."""
    assert start(None, event).starts
    assert not start(None, Event("schedule")).starts


@pytest.mark.parametrize(
    ("on", "event", "reason"),
    [
        ("on: {push: }\n", pull("main"), "`on` names no `pull_request`"),
        ("on: {pull_request: }\n", push("main"), "`on` names no `push`"),
        ("on: {push: }\n", Event("schedule"), "`on` names no `schedule`"),
        (
            "on: {push: {branches: [main]}}\n",
            push(tag="v1"),
            "`on.push` names branches alone, and this is the tag `v1`",
        ),
        ('on: {push: {tags: ["v*"]}}\n', push("main"), "`on.push` names tags alone, and this is the branch `main`"),
    ],
)
def test_what_on_does_not_name_starts_nothing(on: str, event: Event, reason: str) -> None:
    """Whoever names branches does not mean every tag, nor the other way round."""
    assert (start(triggers(on), event).starts, start(triggers(on), event).reason) == (False, reason)


def test_a_push_alone_means_every_push() -> None:
    """`push:` without filters."""
    assert start(triggers("on: {push: }\n"), push("any/branch")).starts
    assert start(triggers("on: {push: }\n"), push(tag="any")).starts


def test_only_ignored_paths_start_nothing() -> None:
    """A change of documentation alone need not build anything."""
    ignoring = triggers('on: {push: {paths-ignore: ["**/*.md"]}}\n')
    assert start(ignoring, push("main", changed=("a.md", "b.py"))).starts
    found = start(ignoring, push("main", changed=("a.md", "docs/b.md")))
    assert found.reason == "every changed path is among `on.push.paths-ignore`: `**/*.md`"


@pytest.mark.parametrize(
    ("glob", "ref"),
    [
        ("main", "main"), ("*", "main"), ("**", "a/b/c"), ("release/*", "release/1.0"), ("release/**", "release/1/2"),
        ("**/fix", "fix"), ("**/fix", "a/b/fix"), ("a/**/z", "a/z"), ("a/**/z", "a/b/c/z"), ("v*.*", "v1.2"),
        ("*-rc*", "v1-rc2"), ("a**", "abc"),
    ],
)  # fmt: skip
def test_a_glob_of_refs_means_what_people_expect(glob: str, ref: str) -> None:
    """The table of the manual."""
    assert ref_matches(glob, ref)


@pytest.mark.parametrize(
    ("glob", "ref"),
    [
        ("main", "main2"), ("*", "a/b"), ("release/*", "release/1/2"), ("release/**", "release"), ("v*", "xv1"),
        ("a*b*c", "acb"), ("**", ""), ("aa*aa", "aaa"), ("Main", "main"),
    ],
)  # fmt: skip
def test_a_glob_of_refs_means_no_more(glob: str, ref: str) -> None:
    """Stars stay within a part; parts are compared letter by letter."""
    assert not ref_matches(glob, ref)


def as_regex(glob: str) -> str:
    """The same meaning, told another way."""
    parts = glob.split("/")
    text = ""
    for index, part in enumerate(parts):
        last = index + 1 == len(parts)
        if part == "**":
            text += r"[^/]*(/[^/]*)*" if last else r"([^/]*/)*"
        else:
            text += "".join("[^/]*" if each == "*" else re.escape(each) for each in part) + ("" if last else "/")
    return text


names = st.text("ab*/", min_size=1, max_size=8)


@given(glob=names, ref=st.text("ab/", min_size=1, max_size=8))
def test_a_glob_of_refs_agrees_with_a_regular_expression(glob: str, ref: str) -> None:
    """Two ways to say it; ours has a bound of time as well."""
    assert ref_matches(glob, ref) == bool(re.fullmatch(as_regex(glob), ref))


def test_a_hostile_glob_takes_no_time() -> None:
    """The file comes with a push from anybody, and a webhook matches it: backtracking would hold everybody up."""
    began = time.monotonic()
    assert not ref_matches("*a" * 100 + "b", "a" * 250)
    assert not ref_matches("**/" * 66 + "b", "a/" * 120 + "a")
    assert time.monotonic() - began < 0.5


paths = st.lists(st.sampled_from(["src/a.py", "docs/b.md", "c.toml", "src/d.md"]), max_size=3)
globs = st.lists(st.sampled_from(["src/**", "**/*.md", "*.toml", "docs", "**"]), max_size=3).map(tuple)
filters = st.builds(PushDef, st.just(()), st.just(()), globs, globs)


@given(push_def=filters, changed=paths, more=paths)
def test_more_changed_paths_never_start_less(push_def: PushDef, changed: list[str], more: list[str]) -> None:
    """A filter of paths looks for one that matters: what is changed beside it takes nothing away."""
    one = start(Triggers(push=push_def), push("main", changed=tuple(changed)))
    both = start(Triggers(push=push_def), push("main", changed=(*changed, *more)))
    assert both.starts or not one.starts


@given(push_def=filters, changed=paths, ignored=globs)
def test_ignoring_more_never_starts_more(push_def: PushDef, changed: list[str], ignored: tuple[str, ...]) -> None:
    """`paths-ignore` only takes away."""
    event = push("main", changed=tuple(changed))
    less = replace(push_def, paths_ignore=(*push_def.paths_ignore, *ignored))
    assert start(Triggers(push=push_def), event).starts or not start(Triggers(push=less), event).starts


@given(push_def=filters)
def test_what_was_changed_may_be_unknown_and_then_nothing_is_held_back(push_def: PushDef) -> None:
    """A first push of a branch, or a forge that does not say: to build too much is the safe mistake."""
    assert start(Triggers(push=push_def), push("main", changed=None)).starts


@pytest.mark.parametrize("glob", ["v[0-9]", "v?"])
def test_a_glob_of_refs_that_could_never_match_is_refused(glob: str) -> None:
    """No ref holds these letters: whoever writes them believes in another language of globs."""
    with pytest.raises(PipelineError, match="cannot be `v"):
        triggers(f'on: {{push: {{tags: ["{glob}"]}}}}\n')


def test_a_glob_of_paths_is_bounded_when_the_file_is_read() -> None:
    """A pattern that the matcher refuses must not come as far as a webhook."""
    with pytest.raises(PipelineError, match="at most 1,024 characters"):
        triggers(f'on: {{push: {{paths: ["{"a" * 1025}"]}}}}\n')
