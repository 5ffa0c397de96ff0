"""Log frames: inflated within the bound that they declare, never beyond it."""

from __future__ import annotations

import io

import zstandard

from headrace.errors import Corrupt
from headrace.v1 import log_pb2

MOST = 64 * 1024
"""Raw bytes in one frame, at most."""


def inflate(frame: log_pb2.Frame) -> bytes:
    """The raw bytes of a frame.

    Raises:
        Corrupt: it is no zstd, or not exactly as long as it declares, or declares more than `MOST`.

    """
    if frame.raw_length > MOST:
        raise Corrupt(f"a log frame declares {frame.raw_length} bytes, more than {MOST}")
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 23)
    try:
        with decompressor.stream_reader(io.BytesIO(frame.zstd), read_across_frames=True) as stream:
            data = stream.read(frame.raw_length + 1)
    except zstandard.ZstdError as error:
        raise Corrupt(f"a log frame cannot be inflated: {error}") from error
    if len(data) != frame.raw_length:
        raise Corrupt(f"a log frame declares {frame.raw_length} bytes and holds others")
    return data
