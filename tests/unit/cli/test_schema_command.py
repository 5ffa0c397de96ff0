"""`headrace schema`, which editors are pointed at."""

from __future__ import annotations

import json

import pytest

from headrace.cli.main import invoke
from headrace.pipeline import schema


def test_the_schema_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """A file that an editor reads: nothing but the schema may stand in it."""
    assert invoke(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()
