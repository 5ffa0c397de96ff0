"""The JSON Schema, which editors check a pipeline file by while it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from headrace.pipeline import PipelineError, load, schema
from headrace.pipeline import language as language_of
from headrace.pipeline import triggers as triggers_of
from headrace.pipeline.described import KEYS
from headrace.pipeline.records import Record

CORPUS = Path(__file__).parents[2] / "pipelines"
GOOD = sorted((CORPUS / "good").glob("*.yml"))
RECORDS = [each for room in (language_of, triggers_of) for each in vars(room).values() if isinstance(each, Record)]
BAD = ("24_no_stages", "30_stages_is_a_mapping", "33_unknown_key", "66_durations", "69_wrong_words", "71_env_reserved",
       "80_misspelt_keys_of_a_pipeline", "82_misspelt_keys_of_a_job", "83_misspelt_keys_of_a_step",
       "84_misspelt_keys_elsewhere", "85_wrong_types_of_a_pipeline", "86_wrong_types_of_a_job",
       "87_wrong_types_of_a_step", "88_wrong_types_elsewhere", "c01_sizes_and_numbers", "c02_cron_and_time_zones",
       "c04_retry_rules", "c06_approvers")  # fmt: skip


def mistakes(file: Path) -> list[str]:
    value: Any = YAML(typ="safe", pure=True).load(file.read_bytes())
    return [each.message for each in Draft202012Validator(schema()).iter_errors(value)]


def test_it_is_a_schema_of_the_draft_that_it_names() -> None:
    """An editor that meets a broken schema says nothing, and nobody learns why."""
    Draft202012Validator.check_schema(schema())
    assert schema()["$schema"] == Draft202012Validator.META_SCHEMA["$id"]


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_a_good_file_fits_it(file: Path) -> None:
    """A red line under what the loader takes teaches people to look away."""
    assert mistakes(file) == []


@pytest.mark.parametrize("name", BAD)
def test_what_it_can_know_it_refuses(name: str) -> None:
    """Keys and types are told while they are typed; what holds between values is for `headrace validate`."""
    assert mistakes(CORPUS / "bad" / f"{name}.yml")


def test_each_key_of_each_record_is_described_and_nothing_else_is() -> None:
    """The schema and the manual are made of one table: a key without its line would be a key without a manual."""
    for record in RECORDS:
        keys = {*record.fields, *record.resolved, *record.unbuilt}
        if record.level == "`retry`":
            assert keys <= KEYS[record.level].keys()
        else:
            assert KEYS[record.level].keys() == keys, record.level
    assert KEYS.keys() == {record.level for record in RECORDS}
    assert all(about.text and not about.text.endswith(".") for keys in KEYS.values() for about in keys.values())


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.level)
def test_each_example_fits_the_key_that_it_stands_for(record: Record) -> None:
    """An example that is refused is worse than none."""
    properties = record.schema()["properties"]
    assert [key for key, one in properties.items() if not Draft202012Validator(one).is_valid(one["examples"][0])] == []


def test_an_example_of_a_whole_file_loads() -> None:
    """The first example that an editor shows is the one that is copied."""
    try:
        load(b'stages: [{"name": "build", "jobs": {"wheel": {"steps": [{"run": "make"}]}}}]', "headrace.yml")
    except PipelineError as error:
        pytest.fail(str(error))
