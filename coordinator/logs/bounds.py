"""What a record may be, judged before anything is stored and without inflating a byte.

Whoever reads a log later may believe: a frame inflates to exactly what it declares, at most 64 KiB, and frames
put one behind the other are one zstd stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import zstandard

from headrace.v1 import log_pb2

RAW_MOST = 64 * 1024
"""Raw bytes of a frame."""
COMPRESSED_MOST = RAW_MOST + 1024
"""Bytes of a compressed frame: what cannot be compressed grows by less than 1 KiB."""
SECTIONS_MOST = 1_000
"""Sections of a stream."""
TEXT_MOST = 1_000
"""Characters of a section's title or result."""
NUMBER_MOST = 1 << 53
"""The highest sequence and offset."""
MESSAGE_MOST = 4_096
"""Records of one message, of all its batches together; a batch without records counts as one."""

_KINDS = frozenset({"setup", "checkout", "cache", "services", "step", "artifacts", "cleanup"})
_STREAM = re.compile(r"[a-z0-9_][a-z0-9_-]{0,62}")
_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOCKS_MOST = 1_024
_RAW, _RLE, _RESERVED = 0, 1, 3


class BadRecord(Exception):
    """A record that can never be stored; the message is one sentence."""


def check_stream(stream: str) -> str:
    """Return the name of a stream if it is one."""
    if not _STREAM.fullmatch(stream):
        raise BadRecord("a stream's name is 1 to 63 characters of [a-z0-9_-]")
    return stream


def check_record(record: log_pb2.Record) -> int:
    """Return the raw length of a record within bounds. Raises BadRecord."""
    if not 0 < record.sequence <= NUMBER_MOST or not 0 <= record.offset <= NUMBER_MOST:
        raise BadRecord(f"record {record.sequence} at offset {record.offset} is not a place in a log")
    match record.WhichOneof("what"):
        case "frame":
            return _check_frame(record.frame)
        case "opened":
            opened = record.opened
            if opened.kind not in _KINDS:
                raise BadRecord(f"a section is one of {', '.join(sorted(_KINDS))}, not {opened.kind[:40]!r}")
            _check_section(opened.section, opened.title)
        case "closed":
            _check_section(record.closed.section, record.closed.result)
        case _:
            raise BadRecord(f"record {record.sequence} is neither a frame nor a section")
    return 0


def _check_section(number: int, text: str) -> None:
    if not 0 < number <= SECTIONS_MOST:
        raise BadRecord(f"section {number} is not one of 1 to {SECTIONS_MOST}")
    if len(text) > TEXT_MOST:
        raise BadRecord(f"the text of section {number} is longer than {TEXT_MOST} characters")


def _check_frame(frame: log_pb2.Frame) -> int:
    if frame.raw_length > RAW_MOST:
        raise BadRecord(f"a frame declares {frame.raw_length} bytes, more than {RAW_MOST}")
    if len(frame.zstd) > COMPRESSED_MOST:
        raise BadRecord(f"a frame has {len(frame.zstd)} compressed bytes, more than {COMPRESSED_MOST}")
    if frame.section > SECTIONS_MOST:
        raise BadRecord(f"section {frame.section} is not one of 0 to {SECTIONS_MOST}")
    check_zstd(frame.zstd, frame.raw_length)
    return frame.raw_length


def check_zstd(data: bytes, raw_length: int) -> None:
    """Check that the bytes are exactly one zstd frame whose own header says `raw_length`. Raises BadRecord.

    The blocks are walked over, not inflated (RFC 8878, 3.1.1): a frame cut short, or with something behind it,
    would make everything after it in a segment unreadable.
    """
    if data[:4] != _MAGIC:
        raise BadRecord("a frame's bytes are not zstd")
    try:
        declared = zstandard.get_frame_parameters(data)
        begin = zstandard.frame_header_size(data)
    except zstandard.ZstdError as error:
        raise BadRecord("a frame's header is damaged") from error
    if declared.content_size != raw_length:
        raise BadRecord(f"a frame declares {raw_length} bytes, its zstd header another number")
    if declared.dict_id or declared.window_size > 8 * RAW_MOST:
        raise BadRecord("a frame asks for a dictionary or a window that logs never have")
    end = begin
    for end in _block_ends(data, begin):  # noqa: B007  the last one is what counts
        pass
    if end + (4 if declared.has_checksum else 0) != len(data):
        raise BadRecord("a frame is cut short, or something stands behind it")


def _block_ends(data: bytes, at: int) -> Iterator[int]:
    """Where each block ends, up to the last."""
    for _ in range(_BLOCKS_MOST):
        header = int.from_bytes(data[at : at + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if at + 3 > len(data) or kind == _RESERVED:
            raise BadRecord("a frame is cut short, or something stands behind it")
        at += 3 + (1 if kind == _RLE else size)
        yield at
        if last:
            return
    raise BadRecord("a frame has more blocks than a log's can have")
