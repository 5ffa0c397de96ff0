"""Compaction: hot records become segments under the eyes of readers, and a crash anywhere changes no byte."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
import zstandard

import coordinator.logs.compaction as room
from coordinator.blobs.store import StoreUnavailable
from coordinator.errors import StoreDown
from coordinator.logs.compaction import Compactor
from coordinator.store.singletons import Singleton
from tests.integration.logs.test_tail import a_stream, close
from tests.integration.logs.world import Stream, World, inflated, read


class Clock:
    """Monotonic seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def a_compactor(world: World, blobs: object = None, clock: Clock | None = None) -> Compactor:
    term = Singleton(world.database, "compactor", clock or Clock())
    return Compactor(world.database, blobs or world.blobs, term, bells=world.bells)  # type: ignore[arg-type]  # a wrapper


def fill(stream: Stream, megabytes: float, seed: int = 1) -> None:
    """Text that hardly compresses, in sections."""
    noise = random.Random(seed)
    for n in range(int(megabytes * 20)):
        if n % 10 == 0:
            stream.open(f"part {n}")
        stream.write(noise.randbytes(50_000))


async def append_all(world: World, stream: Stream) -> None:
    size = 40
    answers = await world.append(*(stream.batch(n, n + size - 1) for n in range(1, len(stream.records) + 1, size)))
    assert answers[-1].sequence == len(stream.records)


async def hot(world: World) -> int:
    return int(await world.value("SELECT count(*) FROM log_record"))


@pytest.mark.parametrize("megabytes", [0.05, 3.0])
async def test_a_sealed_log_becomes_a_segment_and_reads_the_same_from_any_offset(
    world: World, megabytes: float
) -> None:
    """Small ones stay in the database, large ones become objects: nobody who reads can tell."""
    run, stream = await a_stream(world)
    stream.write(b"first words\n")
    fill(stream, megabytes)
    stream.close("it broke")
    await append_all(world, stream)
    await close(world, stream)
    compactor = a_compactor(world)
    assert await compactor.once()
    assert not await compactor.once()
    assert await hot(world) == 0
    seen = await read(world.tail(run))
    assert seen.records == stream.records
    assert seen.complete
    noise = random.Random(2)
    for offset in [0, 1, 12, 50_012, len(stream.raw) - 1, len(stream.raw), len(stream.raw) + 5] + [
        noise.randrange(len(stream.raw)) for _ in range(5)
    ]:
        part = await read(world.tail(run, offset=offset))
        frames = [each for each in part.records if each.HasField("frame")]
        begin = frames[0].offset if frames else offset
        assert begin <= offset
        assert part.raw[offset - begin :] == stream.raw[offset:]
        opened = {each.opened.section for each in part.records if each.HasField("opened")}
        assert {each.frame.section for each in frames} - {0} <= opened


async def test_many_small_logs_are_compacted_together_and_each_reads_the_same(world: World) -> None:
    """A busy coordinator seals hundreds of logs a second: one at a time, with a commit each, it would fall behind."""
    logs = [await a_stream(world) for _ in range(5)]
    for n, (_, stream) in enumerate(logs):
        stream.open("compile").write(b"the words of log %d\n" % n * (n + 1)).close()
        if n == 3:
            fill(stream, 0.05)  # hardly compresses: too large for a row
        await append_all(world, stream)
        await close(world, stream)
    compactor = a_compactor(world)
    assert await compactor.once()
    assert not await compactor.once()
    assert await hot(world) == 0
    assert await world.value("SELECT count(*) FROM log_segment WHERE key IS NULL") == 4
    for run, stream in logs:
        seen = await read(world.tail(run))
        assert seen.records == stream.records
        assert seen.complete


@pytest.mark.parametrize("megabytes", [0.0, 0.5])
@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE log_record SET record = '\\xff' WHERE attempt_id = $1 AND sequence = 1",
        "DELETE FROM log_record WHERE attempt_id = $1 AND sequence = 1",
    ],
)
async def test_a_damaged_log_is_left_as_it_is_and_the_others_are_compacted(
    world: World, harm: str, megabytes: float
) -> None:
    """The oldest comes first: one that can never be done would stand before all others, for ever."""
    logs = [await a_stream(world) for _ in range(3)]
    for _, stream in logs:
        stream.write(b"words\n")
        fill(stream, megabytes)
        await append_all(world, stream)
        await close(world, stream)
    bad = logs[0][1].attempt
    await world.value(harm, bad)
    compactor = a_compactor(world)
    while await compactor.once():
        pass
    assert {row["attempt_id"] for row in await world.fetch("SELECT attempt_id FROM log_record")} <= {bad}
    for run, stream in logs[1:]:
        assert (await read(world.tail(run))).records == stream.records


async def test_small_logs_are_left_alone_by_a_compactor_whose_term_is_over(world: World) -> None:
    """The term stands in their statement too."""

    class Over:
        async def hold(self) -> str | None:
            return "00000000-0000-0000-0000-000000000000"

    run, stream = await a_stream(world)
    stream.write(b"small\n")
    await append_all(world, stream)
    await close(world, stream)
    assert not await Compactor(world.database, world.blobs, Over()).once()
    assert await hot(world) == 1
    assert (await read(world.tail(run))).records == stream.records


async def test_a_segments_object_is_one_zstd_stream_of_the_raw_log(world: World) -> None:
    """Frames are put one behind the other: any zstd tool can read an object without us."""
    _, stream = await a_stream(world)
    fill(stream, 0.3)
    await append_all(world, stream)
    await close(world, stream)
    await a_compactor(world).once()
    key = await world.value("SELECT key FROM log_segment")
    data = b"".join([chunk async for chunk in world.blobs.get(key)])
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        assert reader.read() == stream.raw
    assert await world.value("SELECT count(*) FROM segment_upload") == 0


async def test_a_living_log_is_compacted_but_for_its_newest_part(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that prints for a day must not fill the hot table."""
    monkeypatch.setattr(room, "SEGMENT_RAW", 1 << 20)
    run, stream = await a_stream(world)
    fill(stream, 5)
    await append_all(world, stream)
    compactor = a_compactor(world)
    while await compactor.once():
        pass
    segments = await world.fetch("SELECT bytes_from, bytes_to FROM log_segment ORDER BY first_sequence")
    assert len(segments) >= 3
    assert all(row["bytes_to"] - row["bytes_from"] <= (1 << 20) + 65_536 for row in segments)
    assert await hot(world) > 0
    stream.write(b"and on\n")
    await world.append(stream.batch(len(stream.records)))
    again = await world.append(stream.batch(1, 40))
    assert again[0].sequence == len(stream.records), "what is compacted is acknowledged again, and not stored again"
    assert (await read(world.tail(run, follow=False))).records == stream.records
    middle = await read(world.tail(run, follow=False, offset=segments[1]["bytes_from"]))
    opened = {each.opened.section for each in middle.records if each.HasField("opened")}
    assert {each.frame.section for each in middle.records if each.HasField("frame")} <= opened


async def test_two_readers_see_the_same_bytes_while_the_log_grows_and_is_compacted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compaction swaps records for segments below a reader that is in the middle of them."""
    monkeypatch.setattr(room, "SEGMENT_RAW", 1 << 19)
    run, stream = await a_stream(world)
    async with world.replica as other:
        readers = [asyncio.create_task(read(each.tail(run))) for each in (world, other)]
        compactor = a_compactor(world)
        noise, sent = random.Random(3), 0
        for n in range(60):
            for _ in range(4):
                stream.write(noise.randbytes(30_000))
            await world.append(stream.batch(sent + 1))
            sent = len(stream.records)
            if n % 3 == 0:
                await compactor.once()
        await close(world, stream)
        while await compactor.once():
            pass
        assert await hot(world) == 0
        seen = await asyncio.gather(*readers)
    assert seen[0].records == seen[1].records == stream.records


class CutBlobs:
    """The real store, whose caller dies after an object is written."""

    def __init__(self, blobs: object) -> None:
        self._blobs = blobs

    def __getattr__(self, name: str) -> object:
        return getattr(self._blobs, name)

    async def put(self, key: str, data: bytes | AsyncIterator[bytes], *, sha256_hex: str | None = None) -> None:
        await self._blobs.put(key, data, sha256_hex=sha256_hex)  # type: ignore[attr-defined]  # the real one
        raise StoreUnavailable("the coordinator died here")


async def test_a_crash_between_object_and_row_leaves_the_log_as_it_was_and_an_object_that_is_swept(
    world: World,
) -> None:
    """The object is first: a row that names nothing would be a log that is lost."""
    run, stream = await a_stream(world)
    fill(stream, 0.3)
    await append_all(world, stream)
    await close(world, stream)
    clock = Clock()
    with pytest.raises(StoreUnavailable):
        await a_compactor(world, CutBlobs(world.blobs)).once()
    (stray,) = [row["key"] for row in await world.fetch("SELECT key FROM segment_upload")]
    assert await world.blobs.head(stray) is not None
    assert (await read(world.tail(run))).records == stream.records

    successor = a_compactor(world, clock=clock)
    assert not await successor.once(), "the dead one's term is not over yet"
    clock.now += 31
    assert await successor.once()
    assert await hot(world) == 0
    assert (await read(world.tail(run))).records == stream.records
    assert await world.blobs.head(stray) is not None, "somebody might still be at work on it"
    await world.value("UPDATE segment_upload SET begun_at = begun_at - interval '61 minutes'")
    await successor.once()
    assert await world.blobs.head(stray) is None
    assert await world.value("SELECT count(*) FROM segment_upload") == 0
    assert (await read(world.tail(run))).records == stream.records


class SlowBlobs(CutBlobs):
    """The real store, in which writing takes until the test says so."""

    def __init__(self, blobs: object) -> None:
        super().__init__(blobs)
        self.written = asyncio.Event()
        self.go = asyncio.Event()

    async def put(self, key: str, data: bytes | AsyncIterator[bytes], *, sha256_hex: str | None = None) -> None:
        await self._blobs.put(key, data, sha256_hex=sha256_hex)  # type: ignore[attr-defined]  # the real one
        self.written.set()
        await self.go.wait()


async def test_a_compactor_whose_term_is_over_changes_nothing(world: World) -> None:
    """It may have been frozen for an hour: its late swap names a term that is over."""
    run, stream = await a_stream(world)
    fill(stream, 0.3)
    await append_all(world, stream)
    await close(world, stream)
    blobs, clock = SlowBlobs(world.blobs), Clock()
    frozen = asyncio.create_task(a_compactor(world, blobs).once())
    await blobs.written.wait()
    successor = Singleton(world.database, "compactor", clock)
    assert await successor.hold() is None
    clock.now += 31
    assert await successor.hold() is not None
    blobs.go.set()
    assert not await frozen
    assert await world.value("SELECT count(*) FROM log_segment") == 0
    assert (await read(world.tail(run))).records == stream.records


async def test_an_object_that_the_sweep_may_be_at_becomes_no_segment(world: World) -> None:
    """A row whose object is deleted a moment later would be a log that is lost."""
    run, stream = await a_stream(world)
    fill(stream, 0.3)
    await append_all(world, stream)
    await close(world, stream)
    blobs = SlowBlobs(world.blobs)
    slow = asyncio.create_task(a_compactor(world, blobs).once())
    await blobs.written.wait()
    await world.value("UPDATE segment_upload SET begun_at = begun_at - interval '31 minutes'")
    blobs.go.set()
    assert not await slow
    assert (await read(world.tail(run))).records == stream.records


async def test_a_term_is_taken_over_only_after_its_counter_stood_still_for_a_lease(world: World) -> None:
    """Nobody compares clocks: a holder that renews, however rarely, keeps the term."""
    clock = Clock()
    first, second = (Singleton(world.database, "test", clock) for _ in range(2))
    term = await first.hold()
    assert term is not None
    for _ in range(5):
        assert await second.hold() is None
        clock.now += 29
        assert await first.hold() == term
    assert await second.hold() is None
    clock.now += 29
    assert await second.hold() is None
    clock.now += 1
    taken = await second.hold()
    assert taken not in {None, term}
    assert await first.hold() is None
    await second.leave()
    assert await first.hold() not in {None, term, taken}


async def test_what_was_observed_before_an_outage_counts_for_nothing(world: World) -> None:
    """While the database was away, the holder could not renew either."""
    clock = Clock()
    first, second = (Singleton(world.database, "test", clock) for _ in range(2))
    await first.hold()
    assert await second.hold() is None
    clock.now += 31
    await world.value("ALTER TABLE singleton RENAME TO away")
    await world.value("CREATE VIEW singleton AS SELECT pg_terminate_backend(pg_backend_pid()), a.* FROM away a")
    with pytest.raises(StoreDown):
        await second.hold()
    await world.value("DROP VIEW singleton")
    await world.value("ALTER TABLE away RENAME TO singleton")
    assert await second.hold() is None


async def test_frames_before_the_offset_that_touch_it_are_sent(world: World) -> None:
    """A frame cannot be cut without inflating it: the reader skips."""
    run, stream = await a_stream(world)
    stream.write(b"0123456789").write(b"abc")
    await append_all(world, stream)
    seen = await read(world.tail(run, follow=False, offset=9))
    assert [inflated(each) for each in seen.records] == [b"0123456789", b"abc"]
