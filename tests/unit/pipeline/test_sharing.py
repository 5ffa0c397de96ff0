"""Sharing definitions inside a repository: what `include` and `extends` may cost, and where mistakes are told."""

from __future__ import annotations

import pytest

from headrace.pipeline import Event, Pipeline, PipelineError, expand, load
from headrace.pipeline.nodes import MAX_BYTES

STAGES = b"stages: [{name: s, jobs: {j: {steps: [{run: make}]}}}]\n"


def shared(files: dict[str, bytes], main: bytes = b"") -> Pipeline:
    listed = b", ".join(b"{local: %s}" % each.encode() for each in files)
    return load(b"include: [" + listed + b"]\n" + main + STAGES, "headrace.yml", files.get)


def refusal(files: dict[str, bytes], main: bytes = b"") -> str:
    with pytest.raises(PipelineError) as refused:
        shared(files, main)
    return str(refused.value)


def test_a_file_and_those_that_it_includes_share_the_bounds_of_one() -> None:
    """Twenty files at the bound would cost twenty times what one may."""
    text = b"env: {A: " + b"x" * (MAX_BYTES // 2) + b"}\n"
    assert "together hold" in refusal({"a.yml": text, "b.yml": text, "c.yml": text})
    many = b"templates:\n" + b"".join(b"  t%d: {image: a}\n" % i for i in range(2_000))
    assert "values" in refusal({"a.yml": many, "b.yml": many})


def test_more_than_twenty_files_are_refused() -> None:
    """Each is a look into the repository."""
    assert "more than 20 files" in refusal({f"f{i}.yml": b"env: {A: b}" for i in range(21)})


@pytest.mark.parametrize("step", [1, -1])
def test_more_than_twenty_templates_in_a_row_are_refused_in_whatever_order_they_stand(step: int) -> None:
    """A chain of thousands would need a stack of thousands."""
    chain = [b"  t%d: {extends: t%d}\n" % (i + 1, i) for i in range(2_000)][::step]
    assert "more than 20 templates" in refusal({}, b"templates:\n  t0: {image: a}\n" + b"".join(chain))


def test_a_file_that_was_read_alone_includes_nothing() -> None:
    """Without a repository there is nothing that the path could mean."""
    with pytest.raises(PipelineError, match="this one was read alone"):
        load(b"include: [{local: a.yml}]\n" + STAGES, "headrace.yml")


def test_a_file_that_is_included_twice_is_read_once() -> None:
    """Two files may share a third."""
    plan = expand(shared({"a.yml": b"include: [{local: b.yml}]\n", "b.yml": b"env: {A: b}\n"}), Event())
    assert plan.jobs[0].env == {"A": "b"}


def test_an_included_file_tells_its_mistakes_under_its_own_name() -> None:
    """A line of another file would send whoever mends it to the wrong place."""
    assert refusal({"ci/a.yml": b"env:\n  A: [b]\n"}).startswith("ci/a.yml:2:6: ")
