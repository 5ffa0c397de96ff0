"""A database with a million jobs in it, and the plans that statements have there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import asyncpg

FILL = """
INSERT INTO run (id, project_id, pipeline, pipeline_file, pipeline_text, source, commit, event, trusted, parameters,
                 state, unfinished, active, blocked, failed, canceled)
OVERRIDING SYSTEM VALUE
SELECT 1000000 + n, (SELECT min(id) FROM project), 'p', 'f', '', '', '0', 'manual', true, '{{}}',
       'running', 100, 100, 0, 0, 0
FROM generate_series(1, {runs}) n;
INSERT INTO stage (run_id, index, name, unfinished)
SELECT 1000000 + n, s, 's', 50 FROM generate_series(1, {runs}) n, generate_series(0, 1) s;
INSERT INTO job (id, run_id, stage, place, key, spec, cls, pool, at_most_once, state, unfinished, vt)
OVERRIDING SYSTEM VALUE
SELECT 1000000 + n, 1000001 + n / 100, (n % 100) / 50, n % 100, 'j' || n, '', (SELECT min(id) FROM class) + n % 4,
       'default', false, 'queued', 0, n
FROM generate_series(0, {jobs} - 1) n;
INSERT INTO dependency (run_id, job_id, dependent)
SELECT run_id, id, id + 1 FROM job WHERE id >= 1000000 AND id % 100 < 49;
INSERT INTO queue (job_id, cls, prio, vt, pool)
SELECT id, cls, (id % 3)::smallint, vt, pool FROM job WHERE id >= 1000000 AND state = 'queued';
INSERT INTO agent (id, name, pool, instance, version, labels, slots, sandboxes)
OVERRIDING SYSTEM VALUE
SELECT 1000000 + n, 'x' || n, 'default', 'i', '1', '{{}}', 4, '[]' FROM generate_series(1, {agents}) n;
INSERT INTO session (id, agent_id, instance, replica)
SELECT gen_random_uuid(), 1000000 + n, 'i', gen_random_uuid() FROM generate_series(1, {agents}) n;
INSERT INTO attempt (id, job_id, run_id, agent_id, token, try, state)
OVERRIDING SYSTEM VALUE
SELECT 1000000 + n, 1000000 + n, 1000001 + n / 100, s.agent_id, decode(repeat('00', 16), 'hex'), 1, 'leased'
FROM generate_series(0, {agents} * 4 - 1) n JOIN session s ON s.agent_id = 1000001 + n / 4;
DELETE FROM queue WHERE job_id IN (SELECT job_id FROM attempt);
INSERT INTO lease (attempt_id, job_id, run_id, agent_id, session_id, token, number, at_most_once)
SELECT a.id, a.job_id, a.run_id, a.agent_id, s.id, a.token, 1, false
FROM attempt a JOIN session s ON s.agent_id = a.agent_id
WHERE a.id >= 1000000;
"""
HISTORY = """
INSERT INTO attempt (id, job_id, run_id, agent_id, token, try, state, ended_at)
OVERRIDING SYSTEM VALUE
SELECT 5000000 + n, 1000000 + n, 1000001 + n / 100, 1000001, decode(repeat('00', 16), 'hex'), 1, 'passed',
       clock_timestamp()
FROM generate_series(0, {past} - 1) n;
INSERT INTO log (attempt_id, stream, next, bytes, final_records, sealed_at, compacted_to, compacted_bytes)
SELECT id, 'main', 11, 100, 10, clock_timestamp(), 10, 100 FROM attempt WHERE id >= 5000000;
INSERT INTO log_record (attempt_id, stream, sequence, bytes_from, raw_length, record)
SELECT id, 'main', 1, 0, 10, '' FROM attempt WHERE id >= 5000000;
INSERT INTO log_section (attempt_id, stream, section, opened, sequence, record)
SELECT id, 'main', 1, true, 1, '' FROM attempt WHERE id >= 5000000;
INSERT INTO log_segment (attempt_id, stream, first_sequence, last_sequence, bytes_from, bytes_to, key, size, sha256,
                         index)
SELECT id, 'main', 1, 10, 0, 100, 'k', 1, '', '' FROM attempt WHERE id >= 5000000;
INSERT INTO artifact (id, run_id, job_id, attempt_id, name, expires_at, state)
OVERRIDING SYSTEM VALUE
SELECT id, run_id, job_id, id, 'n' || id, clock_timestamp() + interval '30 days', 'there'
FROM attempt WHERE id >= 5000000;
INSERT INTO artifact_producer (run_id, name, job_id) SELECT run_id, name, job_id FROM artifact;
INSERT INTO artifact_file (artifact_id, path, sha256, size, executable)
SELECT id, 'f', decode(repeat('00', 32), 'hex'), 1, false FROM artifact;
INSERT INTO request (id, kind, run_id) SELECT 'request-' || n, 'create', n FROM generate_series(1, {past}) n;
INSERT INTO bundle (sha256) SELECT sha256(n::text::bytea) FROM generate_series(1, {past}) n;
INSERT INTO segment_upload (key) SELECT 'k' || n FROM generate_series(1, {past} / 10) n;
INSERT INTO concurrency_group (project_id, trusted, of_jobs, name)
SELECT (SELECT min(id) FROM project), true, true, 'g' || n FROM generate_series(1, {past} / 10) n;
INSERT INTO group_member (group_id, run_id, job_id, size, when_full, entered)
SELECT g.id, j.run_id, j.id, 1, 'queue', true
FROM concurrency_group g JOIN job j ON j.id = 1000000 + g.id WHERE g.of_jobs;
INSERT INTO run (project_id, pipeline, pipeline_file, pipeline_text, source, commit, event, trusted, parameters,
                 state, unfinished, active, blocked, failed, canceled, ended_at)
SELECT (SELECT min(id) FROM project), 'p', 'f', '', '', '0', 'manual', true, '{{}}', 'passed', 0, 0, 0, 0, 0,
       clock_timestamp()
FROM generate_series(1, {past}) n;
INSERT INTO fragment (run_id, number, job_id, step, sha256, text, added)
SELECT run_id, row_number() OVER (PARTITION BY run_id), id, 0, decode(repeat('00', 32), 'hex'), '', 1
FROM job WHERE id >= 1000000 AND id < 1000000 + {past};
INSERT INTO expansion (job_id, run_id, lists) SELECT id, run_id, '' FROM job WHERE id < 1000000 + {past};
INSERT INTO expansion_due (job_id, run_id) SELECT job_id, run_id FROM expansion;
INSERT INTO cells (run_id, name, max_parallel, fail_fast)
SELECT id, 'c', 1, true FROM run;
"""


class Full:
    """A database with much in it, and one with little, for one statement."""

    def __init__(self, db: asyncpg.Connection) -> None:
        self.db = db

    async def plan(self, statement: str, *values: object, kind: str = "force_generic_plan") -> Plan:
        """Really runs it, with the plan that a prepared statement has in the end, and takes it back."""
        transaction = self.db.transaction()
        await transaction.start()
        try:
            await self.db.execute(f"SET LOCAL plan_cache_mode = {kind}")
            await self.db.execute(f"PREPARE guarded AS {statement}")
            given = f"({', '.join(map(_literal, values))})" if values else ""
            text = await self.db.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE guarded{given}")
        finally:
            await transaction.rollback()
            await self.db.execute("DEALLOCATE guarded")
        return Plan(json.loads(text)[0]["Plan"])

    async def expected(self, statement: str) -> Plan:
        """The plan that it has in the end; it is not run."""
        transaction = self.db.transaction()
        await transaction.start()
        try:
            await self.db.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            await self.db.execute(f"PREPARE expected AS {statement}")
            count = await self.db.fetchval(
                "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'expected'"
            )
            given = f"({', '.join(['NULL'] * count)})" if count else ""
            text = await self.db.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE expected{given}")
        finally:
            await transaction.rollback()
            await self.db.execute("DEALLOCATE expected")
        return Plan(json.loads(text)[0]["Plan"])


def _literal(value: object) -> str:
    if isinstance(value, list):
        return "'{" + ",".join(map(str, value)) + "}'"
    return f"'{value}'"


class Plan:
    """What a statement did."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.nodes = list(_walk(root))

    def scans(self, table: str) -> set[str]:
        """How a table was read: `Seq Scan`, or the names of indexes."""
        found = set()
        for node in self.nodes:
            if node.get("Relation Name") == table and "Scan" in node["Node Type"]:
                bitmaps = [each["Index Name"] for each in _walk(node) if each["Node Type"] == "Bitmap Index Scan"]
                found.update(bitmaps or [node.get("Index Name", node["Node Type"])])
        return found

    @property
    def rows(self) -> int:
        """Rows that scans have touched, also those they threw away."""
        return int(
            sum(
                (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
                for node in self.nodes
                if node.get("Relation Name") and "Scan" in node["Node Type"]
            )
        )


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _walk(child)


async def filled(dsn: str, jobs: int, agents: int) -> asyncpg.Connection:
    """Runs of 100 jobs each, all queued, agents with leases, and a tenth as much history."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(FILL.format(jobs=jobs, runs=jobs // 100 + 1, agents=agents))
    await connection.execute(HISTORY.format(past=jobs // 10))
    await connection.execute("ANALYZE")
    return connection
