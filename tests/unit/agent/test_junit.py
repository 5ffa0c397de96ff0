"""JUnit reports: the shapes that tools write, and what a hostile job may write instead."""

from __future__ import annotations

import contextlib
import time
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.junit import MOST_FAILURES, MOST_MESSAGE, NotJUnit, report_of, together
from headrace.v1 import common_pb2 as pb

PYTEST = """<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest" errors="1"
failures="1" skipped="1" tests="4" time="0.061" timestamp="2026-11-26T10:00:00" hostname="h">
<testcase classname="tests.test_a" name="test_passes" time="0.001" />
<testcase classname="tests.test_a" name="test_fails[ä]" time="0.25"><failure message="assert 1 == 2">def test_fails():
&gt;       assert 1 == 2
E       assert 1 == 2</failure></testcase>
<testcase classname="tests.test_a" name="test_skipped" time="0.000"><skipped type="pytest.skip"
message="later">x</skipped></testcase><testcase classname="tests.test_b" name="test_setup"
time="0.010"><error message="failed on setup">trace</error>
</testcase></testsuite></testsuites>"""
SUREFIRE = """<?xml version="1.0" encoding="UTF-8"?>
<testsuite xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:noNamespaceSchemaLocation="https://x/y.xsd"
version="3.0" name="com.example.AppTest" time="1,234.5" tests="3" errors="0" skipped="1" failures="1">
<properties><property name="java.version" value="17"/></properties>
<testcase name="adds" classname="com.example.AppTest" time="0.004"/>
<testcase name="divides" classname="com.example.AppTest" time="1,234.5"><failure message="expected: &lt;1&gt;"
type="org.opentest4j.AssertionFailedError"><![CDATA[org.opentest4j.AssertionFailedError: expected: <1>
\tat com.example.AppTest.divides(AppTest.java:10)]]></failure><system-out><![CDATA[noise <failure/>]]></system-out>
</testcase><testcase name="flaky" classname="com.example.AppTest" time="0.1"><flakyFailure
message="once">x</flakyFailure></testcase>
<testcase name="ignored" classname="com.example.AppTest" time="0"><skipped/></testcase></testsuite>"""
GO = """<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="2" failures="1"><testsuite name="example.com/pkg" tests="2" failures="1" errors="0"
id="0" time="0.170">
<testcase name="TestOne" classname="example.com/pkg" time="0.060"></testcase>
<testcase name="TestTwo" classname="" time="0.110"><failure message="Failed" type="">    two_test.go:11: wrong</failure>
</testcase></testsuite></testsuites>"""


def read(text: str) -> pb.TestReport:
    return report_of([text.encode()])


def counts(report: pb.TestReport) -> tuple[int, int, int, int, int]:
    return report.tests, report.failures, report.errors, report.skipped, report.duration_ms


def test_the_report_of_pytest_is_read() -> None:
    """Failures carry the assertion and the lines around it."""
    report = read(PYTEST)
    assert counts(report) == (4, 1, 1, 1, 261)
    failed, error = report.failed
    assert (failed.suite, failed.name, failed.duration_ms, failed.error) == (
        "tests.test_a",
        "test_fails[ä]",
        250,
        False,
    )
    assert failed.message.startswith("assert 1 == 2\ndef test_fails():\n>       assert")
    assert (error.suite, error.name, error.message, error.error) == (
        "tests.test_b",
        "test_setup",
        "failed on setup\ntrace",
        True,
    )


def test_the_report_of_surefire_is_read() -> None:
    """One suite as root, a time with thousands, a retry that passed in the end, and output that looks like XML."""
    report = read(SUREFIRE)
    assert counts(report) == (4, 1, 0, 1, 1_234_604)
    assert "AppTest.java:10" in report.failed[0].message


def test_the_report_of_go_is_read() -> None:
    """Where no class is named the suite stands."""
    report = read(GO)
    assert counts(report) == (2, 1, 0, 0, 170)
    assert (report.failed[0].suite, report.failed[0].message) == (
        "example.com/pkg",
        "Failed\n    two_test.go:11: wrong",
    )


def test_suites_in_suites_are_counted_by_their_cases() -> None:
    """Some tools nest them, and attributes of the outer ones would count twice."""
    inner = '<testsuite name="b" tests="1"><testcase name="x"/></testsuite>'
    assert (
        read(
            f'<testsuites tests="9"><testsuite name="a" tests="2">{inner}<testcase name="y"/></testsuite></testsuites>'
        ).tests
        == 2
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><testsuite name="&b;"/>',
            "a document type or entities",
        ),
        ('<!DOCTYPE x SYSTEM "http://169.254.0.1/x.dtd"><testsuite/>', "a document type or entities"),
        (
            '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><testsuite>&a;</testsuite>',
            "a document type or entities",
        ),
        ("<html></html>", "its root is `html`"),
        ("<testsuite><testcase></testsuite>", "it is no XML: mismatched tag in line 1"),
        ("<testsuite>", "it is no XML: "),
        ("", "it is no XML: no element found"),
        ("<testsuite>" + "<a>" * 2000, "over 1000 deep"),
        ('<?xml version="1.0" encoding="klingon"?><testsuite/>', "it "),
    ],
)
def test_what_is_no_report_is_refused_in_one_clause(text: str, said: str) -> None:
    """Nothing that a job writes makes the agent fetch, expand or recurse; its author is told what is wrong."""
    with pytest.raises(NotJUnit, match=said) as refused:
        read(text)
    assert "\n" not in str(refused.value)


def test_a_billion_laughs_are_refused_at_once() -> None:
    """A kilobyte that would fill the machine's memory."""
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    began = time.process_time()
    with pytest.raises(NotJUnit, match="entities"):
        read(f'<!DOCTYPE l [<!ENTITY l0 "lol">{entities}]><testsuite name="&l9;"/>')
    assert time.process_time() - began < 0.5


def test_ten_mebibytes_are_read_in_seconds_and_kept_in_little() -> None:
    """A large project's report is no reason to hold a slot."""
    case = (
        '<testcase classname="a.b.c" name="test_it" time="0.001"><failure message="no">'
        + "x" * 4000
        + "</failure></testcase>"
    )
    piece = (case * 200).encode()
    pieces = [b"<testsuites><testsuite>", *[piece] * (10 * 2**20 // len(piece)), b"</testsuite></testsuites>"]
    small = b"<testcase name='a' time='1'/>"
    many = [b"<testsuite>", *[small * 1000] * (10 * 2**20 // len(small) // 1000), b"</testsuite>"]
    for each in (pieces, many):
        began = time.process_time()
        report = report_of(each)
        assert time.process_time() - began < 5
        assert report.tests > 2_000
        assert report.ByteSize() < (MOST_MESSAGE + 100) * MOST_FAILURES


@given(
    st.lists(st.tuples(st.sampled_from(["", "failure", "error", "skipped"]), st.floats(0, 10)), max_size=30),
    st.integers(1, 50),
)
def test_every_case_is_counted_once_however_the_bytes_are_cut(cases: list[tuple[str, float]], size: int) -> None:
    """Pieces end anywhere, also within a character."""
    body = "".join(
        f'<testcase name="ü{n}" time="{seconds}">{f"<{ending}/>" if ending else ""}</testcase>'
        for n, (ending, seconds) in enumerate(cases)
    )
    data = f"<testsuite>{body}</testsuite>".encode()
    report = report_of(data[at : at + size] for at in range(0, len(data), size))
    endings = [ending for ending, _ in cases]
    wanted = (len(cases), *(endings.count(each) for each in ("failure", "error", "skipped")))
    assert counts(report)[:4] == wanted
    assert [each.name for each in report.failed] == [
        f"ü{n}" for n, e in enumerate(endings) if e in {"failure", "error"}
    ]


@given(
    st.one_of(st.binary(max_size=300), st.text(max_size=50).map(lambda t: f"<testsuite name={quoteattr(t)}/>".encode()))
)
def test_no_bytes_break_the_parser(data: bytes) -> None:
    """They are read, or refused in one sentence."""
    with contextlib.suppress(NotJUnit):
        report_of([data])


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "soon", "1e999", ""])
def test_a_time_that_is_none_is_bounded(text: str) -> None:
    """It is shown to people, and added up."""
    assert 0 <= read(f'<testsuite><testcase time="{text}"/></testsuite>').duration_ms <= 10**12


def test_the_reports_of_a_job_are_added_up_and_the_first_failures_kept() -> None:
    """A matrix of modules writes one each."""
    many = read("<testsuite>" + '<testcase name="x"><failure/></testcase>' * 80 + "</testsuite>")
    whole = together([many, many, read(GO)], ["a.xml: it is no XML"] * 30)
    assert counts(whole)[:2] == (162, 161)
    assert len(whole.failed) == MOST_FAILURES
    assert len(whole.problems) == 21
    assert whole.problems[-1] == "and 10 more"
