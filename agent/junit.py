"""JUnit reports, as pytest, surefire, go-junit-report and others write them. Pure: bytes in, a summary out.

A report is hostile like all that a job wrote. The parser refuses document types, entities and whatever is outside of
the file, and keeps nothing of it but counts and the first failures: a report of any size takes no more memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from xml.sax import SAXException
from xml.sax.handler import ContentHandler
from xml.sax.xmlreader import AttributesImpl

from defusedxml.common import DefusedXmlException
from defusedxml.expatreader import DefusedExpatParser

from headrace.pipeline.problems import shown
from headrace.v1 import common_pb2 as pb

MOST_FAILURES = 100
MOST_MESSAGE = 2_000
"""Characters of one failure's message."""
_MOST_NAME = 500
_MOST_PROBLEMS = 20
_DEEPEST = 1_000
_MOST_SECONDS = 1e9
_ROOTS = ("testsuites", "testsuite")


class NotJUnit(Exception):
    """A file that is no report; the message is one clause."""


def report_of(pieces: Iterable[bytes]) -> pb.TestReport:
    """The summary of one report, given in pieces of any size. Raises `NotJUnit`."""
    listener = _Listener()
    parser = DefusedExpatParser(forbid_dtd=True, forbid_entities=True, forbid_external=True)
    parser.setContentHandler(listener)
    try:
        for piece in pieces:
            parser.feed(piece)
        parser.close()
    except DefusedXmlException as error:
        raise NotJUnit("it has a document type or entities, and a report needs none") from error
    except SAXException as error:
        raise NotJUnit(f"it is no XML: {_clause(error)}") from error
    except (ValueError, LookupError) as error:  # an encoding that nobody knows
        raise NotJUnit(f"it cannot be read: {error}") from error
    return listener.report


def together(reports: Iterable[pb.TestReport], problems: Iterable[str]) -> pb.TestReport:
    """The summary of all reports of a job, with the first failures and problems."""
    whole = pb.TestReport()
    for each in reports:
        whole.tests += each.tests
        whole.failures += each.failures
        whole.errors += each.errors
        whole.skipped += each.skipped
        whole.duration_ms += each.duration_ms
        whole.failed.extend(each.failed[: MOST_FAILURES - len(whole.failed)])
    told = list(problems)
    whole.problems.extend(told[:_MOST_PROBLEMS])
    if len(told) > _MOST_PROBLEMS:
        whole.problems.append(f"and {len(told) - _MOST_PROBLEMS} more")
    return whole


def _clause(error: SAXException) -> str:
    """What the parser says, with the line, as one clause."""
    line = getattr(error, "getLineNumber", lambda: None)()
    return f"{error.getMessage()}{f' in line {line}' if line else ''}"


class _Listener(ContentHandler):
    """Hears the elements of a report one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.report = pb.TestReport()
        self._depth = 0
        self._suites: list[str] = []
        self._case: dict[str, str] | None = None
        self._ending = ""
        """How the present case ended: the gravest of what is told."""
        self._message = ""
        self._inside = ""
        """The element of an ending whose text is being read."""

    def startElement(self, name: str, attrs: AttributesImpl) -> None:  # noqa: N802 - the library's name
        name = name.rpartition(":")[2]
        self._depth += 1
        if self._depth == 1 and name not in _ROOTS:
            raise NotJUnit(f"its root is {shown(name)}, and not `testsuites` or `testsuite`")
        if self._depth > _DEEPEST:
            raise NotJUnit(f"its elements are over {_DEEPEST} deep")
        if name == "testsuite":
            self._suites.append(attrs.get("name", ""))
        elif name == "testcase" and self._case is None:
            self._case = {key: attrs.get(key, "") for key in ("name", "classname", "time")}
            self._ending = self._message = ""
        elif self._case is not None and name in _GRAVITY and _GRAVITY[name] > _GRAVITY.get(self._ending, 0):
            self._ending = self._inside = name
            self._message = attrs.get("message", "")[:MOST_MESSAGE]
            if self._message:
                self._message += "\n"

    def characters(self, content: str) -> None:
        if self._inside and len(self._message) < 2 * MOST_MESSAGE:
            self._message += content[:MOST_MESSAGE]

    def endElement(self, name: str) -> None:  # noqa: N802 - the library's name
        name = name.rpartition(":")[2]
        self._depth -= 1
        if name == self._inside:
            self._inside = ""
        elif name == "testsuite":
            self._suites.pop()
        elif name == "testcase" and self._case is not None:
            self._count(self._case)
            self._case = None

    def _count(self, case: dict[str, str]) -> None:
        report, duration = self.report, _milliseconds(case["time"])
        report.tests += 1
        report.duration_ms += duration
        report.failures += self._ending == "failure"
        report.errors += self._ending == "error"
        report.skipped += self._ending == "skipped"
        if self._ending in {"failure", "error"} and len(report.failed) < MOST_FAILURES:
            report.failed.add(
                suite=(case["classname"] or (self._suites[-1] if self._suites else ""))[:_MOST_NAME],
                name=case["name"][:_MOST_NAME],
                message=self._message.strip()[:MOST_MESSAGE],
                duration_ms=duration,
                error=self._ending == "error",
            )


_GRAVITY = {"skipped": 1, "error": 2, "failure": 3}


def _milliseconds(text: str) -> int:
    """Seconds as they stand in a report, `1,234.5` too; 0 for what is no time."""
    try:
        seconds = float(text.replace(",", "") or 0)
    except ValueError:
        return 0
    return round(1000 * min(seconds, _MOST_SECONDS)) if seconds > 0 and not math.isnan(seconds) else 0
