"""What a list of globs means."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline.globs import BadPattern, Patterns


def matches(pattern: str, path: str) -> bool:
    return Patterns((pattern,)).means(path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("dist/*.whl", "dist/a.whl"),
        ("**/*.whl", "a.whl"),
        ("**/*.whl", "x/y/z/a.whl"),
        ("a/**/b", "a/b"),
        ("a/**/b", "a/x/y/b"),
        ("a/**", "a/x/y"),
        ("dist", "dist/deep/file"),
        ("dist/", "dist/deep/file"),
        ("./dist/x", "dist/x"),
        (".", "any/thing"),
        ("*", ".coverage"),
        (".git/config", ".git/config"),
        ("**", "vendor/.git/config"),
        ("[ab]?", "ax"),
        ("[", "["),
        ("*", "two\nlines"),
    ],
)
def test_a_pattern_means_what_people_expect(pattern: str, path: str) -> None:
    """The table of the manual."""
    assert matches(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("dist/*.whl", "dist/sub/a.whl"),
        ("a/**", "a"),
        ("**", ".git/config"),
        ("*/config", ".git/config"),
        ("[!a]", "a"),
    ],
)
def test_a_pattern_means_nothing_else(pattern: str, path: str) -> None:
    """`.git` above all is never swept up by a wildcard: it is no product of a job."""
    assert not matches(pattern, path)


@pytest.mark.parametrize("pattern", ["/etc/passwd", "../x", "a/../../x", "a\0b", "x" * 2000])
def test_a_pattern_that_leads_out_is_refused(pattern: str) -> None:
    """Globs come from the pipeline file, which in a fork's pull request is a stranger's."""
    with pytest.raises(BadPattern):
        Patterns((pattern,))


def test_a_pattern_made_to_backtrack_costs_next_to_nothing() -> None:
    """A stranger's glob must not stop the agent's thread."""
    began = time.monotonic()
    assert not matches("*a" * 200 + "b", "a" * 250)
    assert not matches("**/a/" * 100 + "b", "/".join(["a"] * 150))
    assert time.monotonic() - began < 1


_names = st.text(alphabet="ab.[", min_size=1, max_size=3).filter(lambda name: name not in {".", ".."})


@given(
    st.lists(st.sampled_from(["a", "b", "*", "?", "**", "a*"]), min_size=1, max_size=5),
    st.lists(_names, min_size=1, max_size=5),
)
def test_walking_down_agrees_with_a_plain_recursive_definition(parts: list[str], names: list[str]) -> None:
    """The walker prunes; what it prunes must be what the definition says never matches."""

    def plain(parts: list[str], names: list[str]) -> bool:
        if not parts:
            return True  # the file, or a folder above it
        if not names:
            return False
        if parts[0] == "**":
            if len(parts) == 1:
                return True
            return any(plain(parts[1:], names[i:]) for i in range(len(names)))
        return fnmatch.fnmatchcase(names[0], parts[0]) and plain(parts[1:], names[1:])

    assert matches("/".join(parts), "/".join(names)) is plain(parts, names)
