"""The daemons' own logs: structlog, JSON when standard error is not a terminal."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog


def set_up(level: str, stream: TextIO = sys.stderr) -> None:
    """Sends what the daemon and its libraries have to say to one place, in one shape."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    for_people = stream.isatty()
    shape: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=True) if for_people else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                shape,
            ],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for library in ("alembic", "botocore", "httpx", "httpcore"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # In an outage its pool tells of every try, with a traceback; we say it once, and /readyz says it too.
    logging.getLogger("asyncpg").setLevel(logging.ERROR)
