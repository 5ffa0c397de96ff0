"""Reports of tests in a workspace: bounded, and never a reason to fail."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agent import findings
from agent.findings import patterns_in, reports_of

ONE = b'<testsuite><testcase name="x"/></testsuite>'


def test_only_so_many_reports_are_read(tmp_path: Path) -> None:
    """A job that writes a million of them holds no slot."""
    for n in range(findings.MOST_REPORTS + 1):
        (tmp_path / f"{n:04}.xml").write_bytes(ONE)
    found = reports_of(tmp_path, ("*.xml",), time.monotonic)
    assert found is not None
    assert found.tests == 200
    assert list(found.problems) == ["201 files match, and the first 200 are read"]


def test_a_report_that_is_too_large_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One, and all of them together."""
    monkeypatch.setattr(findings, "MOST_REPORT_BYTES", 2 * len(ONE))
    monkeypatch.setattr(findings, "MOST_BYTES", 3 * len(ONE))
    for name, size in {"a": 3, "b": 1, "c": 1, "d": 1, "e": 1}.items():
        (tmp_path / f"{name}.xml").write_bytes(ONE.ljust(size * len(ONE)))
    found = reports_of(tmp_path, ("*.xml",), time.monotonic)
    assert found is not None
    assert found.tests == 3
    assert list(found.problems) == ["a.xml has over 86 bytes.", "e.xml has over 0 bytes."]


def test_globs_that_lead_elsewhere_are_a_problem_and_no_failure(tmp_path: Path) -> None:
    """The loader refuses them; the agent does not depend on it."""
    found = reports_of(tmp_path, ("../*.xml",), time.monotonic)
    assert found is not None
    assert "leads out of the workspace" in found.problems[0]


def test_patterns_are_looked_for_in_linear_time_and_anywhere_in_the_text() -> None:
    """A job writes the text, and its author the pattern: neither may hold the agent."""
    text = "a" * (1 << 20) + "\nread: connection reset by peer\n"
    began = time.process_time()
    found, wrong = patterns_in(text, ["connection (reset|refused)", "^read", "(?m)^read", "(a+)+$", "nope", "(a"])
    assert time.process_time() - began < 2
    assert found == ["connection (reset|refused)", "(?m)^read"]
    assert len(wrong) == 1
    assert "`(a`" in wrong[0]
