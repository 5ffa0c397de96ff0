"""Plays runs through the real store with retention on, and looks whether tables and indexes grow.

    nice python scripts/soak.py --minutes 20

An embedded PostgreSQL with its own settings; the coordinator's store, log writer, compactor and sweep in this process.
Runs come at a steady rate and are kept for a while; what the store keeps for an hour or for a week is made older by
the script, so that as many rows go as come. After the first quarter nothing may grow any more: sizes go up and down
with each vacuum, and the greatest of the last quarter may be at most a quarter above the greatest of the second. Exit
1 for what grew.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from coordinator.blobs.expiry import Expiry  # noqa: E402 - found by the line above
from coordinator.logs.bells import LogBells  # noqa: E402
from coordinator.logs.compaction import Compactor  # noqa: E402
from coordinator.logs.writer import LogWriter  # noqa: E402
from coordinator.store.database import Database  # noqa: E402
from coordinator.store.embedded import EmbeddedPostgres  # noqa: E402
from coordinator.store.migrate import migrate  # noqa: E402
from coordinator.store.singletons import Singleton  # noqa: E402
from tests.integration.logs.world import Stream, local_blobs  # noqa: E402
from tests.integration.store.world import PostgresWorld, ended  # noqa: E402

HOT = ("queue", "queue_order", "session", "lease", "log_record", "group_member", "singleton")
MOST_GROWTH = 1.25
SMALL = 512 << 10
"""Bytes; below it a few pages more or less say nothing."""
LINES = 30
PIPELINE = """
concurrency: {{group: branch-{number}}}
stages:
  - name: build
    jobs: {{wheel: {{steps: [{{run: x}}]}}}}
  - name: test
    jobs:
      unit: {{matrix: {{n: [1, 2, 3, 4]}}, steps: [{{run: x}}]}}
      lint: {{concurrency: {{group: lint-{number}}}, steps: [{{run: x}}]}}
"""
FORGOTTEN = """
UPDATE run SET forgotten_at = forgotten_at - interval '1 hour'
WHERE forgotten_at > clock_timestamp() - interval '1 hour'
"""
REQUESTED = """
UPDATE request SET created_at = created_at - interval '8 days'
WHERE created_at BETWEEN clock_timestamp() - interval '1 day' AND clock_timestamp() - make_interval(secs => $1)
"""
SIZES = """
SELECT c.relname AS name,
       pg_relation_size(c.oid) + coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0) AS bytes
FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'i')
"""


class Soak:
    """One replica's store with an agent that is only a session. Counts what it has played."""

    def __init__(self, world: PostgresWorld, writer: LogWriter) -> None:
        self._world = world
        self._writer = writer
        self.runs = self.jobs = self.records = 0

    async def play(self, per_s: float, until: float) -> None:
        """Runs at a steady rate, each of six jobs with a log, to their ends."""
        session = (await self._world.open(slots=100)).session_id
        due = time.monotonic()
        while time.monotonic() < until:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += 1 / per_s
            self.runs += 1
            await self._world.pipeline(PIPELINE.format(number=self.runs))
            while claimed := await self._world.claim(session, 100, number=self.jobs + 1):
                await asyncio.gather(*(self._job(each) for each in claimed))
                await self._world.beat(session, self.jobs)
                await self._world.at.release_due()

    async def _job(self, claimed: object) -> None:
        await self._world.start(claimed)  # type: ignore[arg-type]  # as it was claimed
        log = Stream(claimed.attempt_id, token=claimed.token).open()  # type: ignore[attr-defined]
        for number in range(LINES):
            log.write(b"%d: a line of a job, and what it has to say, which is not much\n" % number)
        log.close("passed")
        await (await self._writer.submit([log.batch()]))
        told = replace(ended(claimed), log_records={"main": len(log.records)})  # type: ignore[arg-type]
        await self._world.at.report([told])
        self.jobs += 1
        self.records += len(log.records)


async def sweep(world: PostgresWorld, sweeps: Sequence[Expiry | Compactor], keep_s: float) -> None:
    """What the loops of a replica do, once a second, and time that goes by for what is kept long."""
    while True:
        for each in sweeps:
            while await each.once():
                pass
        await world.fetch(FORGOTTEN)
        await world.fetch(REQUESTED, keep_s)
        await world.at.mend(3600)
        await asyncio.sleep(1)


async def measure(world: PostgresWorld, every_s: float, taken: list[dict[str, int]]) -> None:
    """Bytes of each table (with its large values) and index, again and again."""
    while True:
        await asyncio.sleep(every_s)
        taken.append({row["name"]: row["bytes"] for row in await world.fetch(SIZES)})
        print(f"{len(taken):3}  {sum(taken[-1].values()) / 2**20:7.1f} MiB  {shown(taken[-1])}", flush=True)


def shown(sizes: dict[str, int]) -> str:
    """The hot tables, in KiB."""
    return "  ".join(f"{name} {sizes[name] >> 10}" for name in HOT if not name.startswith("singleton"))


def judge(taken: Sequence[dict[str, int]]) -> int:
    """Prints what is large or has grown, in KiB; returns the exit code."""
    part = max(1, len(taken) // 4)
    second, fourth = taken[part : 2 * part], taken[-part:]
    grown = []
    for name in sorted(taken[-1], key=lambda each: -taken[-1][each]):
        first, last = (max(each[name] for each in some) for some in (second, fourth))
        flat = last <= max(first * MOST_GROWTH, SMALL)
        grown += [] if flat else [name]
        if last >= SMALL or name in HOT:
            print(f"{line(name, first, last)}{'' if flat else '  GREW'}")
    total = [max(sum(each.values()) for each in some) for some in (second, fourth)]
    print(line("all", *total))
    return 1 if grown else 0


def line(name: str, first: float, last: float) -> str:
    """What it had and has, in KiB, and the ratio."""
    return f"{name:28} {first / 1024:9.0f} {last / 1024:9.0f}  {last / max(first, 1):.2f}"


async def main() -> int:
    """Plays and judges; returns the exit code."""
    parser = argparse.ArgumentParser(description="Plays runs with retention on, and looks whether tables grow.")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--keep", type=float, default=40, help="seconds that a run is kept after its end")
    parser.add_argument("--per-s", type=float, default=2, help="runs a second")
    asked = parser.parse_args()
    seconds, taken = asked.minutes * 60, list[dict[str, int]]()
    with tempfile.TemporaryDirectory(prefix="hr-soak-") as folder:
        async with EmbeddedPostgres(Path(folder) / "pg") as postgres, AsyncExitStack() as up:
            await migrate(postgres.dsn)
            database = await up.enter_async_context(Database.open(postgres.dsn, size=8))
            world, blobs = PostgresWorld(database, postgres.dsn), local_blobs(Path(folder) / "blobs")
            writer = LogWriter(database, LogBells())
            terms = [Singleton(database, name, time.monotonic) for name in ("expiry", "compactor")]
            soak = Soak(world, writer)
            sweeps = (
                Expiry(database, blobs, terms[0], keep_runs_s=asked.keep),
                Compactor(database, blobs, terms[1]),
            )
            beside = [
                asyncio.create_task(each)
                for each in (writer.run(), sweep(world, sweeps, asked.keep), measure(world, seconds / 40, taken))
            ]
            playing = asyncio.create_task(soak.play(asked.per_s, time.monotonic() + seconds))
            done, _ = await asyncio.wait([playing, *beside], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
            for task in beside:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
    print(f"{soak.runs:,} runs, {soak.jobs:,} jobs, {soak.records:,} records of logs in {asked.minutes:g} min; KiB:")
    return judge(taken)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
