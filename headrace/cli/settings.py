"""What the command line reads from its environment: here, once, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace.errors import BadInput, Violation
from headrace.settings_names import CLIENT, check

OF_DAEMONS = frozenset(
    "HEADRACE_" + name
    for name in (
        "ALLOW_HOST",
        "BLOB_LISTEN",
        "BLOB_PUBLIC_URL",
        "BLOB_URL",
        "CHANGES_BURST",
        "CHANGES_PER_S",
        "CONFIG",
        "CPU",
        "DATABASE_CONNECTIONS",
        "DATABASE_DIRECT_URL",
        "DATABASE_URL",
        "DATA_DIR",
        "DOCKER_IMAGE",
        "DOCKER_RUNTIME",
        "EMBEDDED",
        "FIRST_UID",
        "HEARTBEAT_S",
        "HELLOS_BURST",
        "HELLOS_PER_S",
        "HTTP_LISTEN",
        "JOB_ADDRESSES",
        "KEEP_RUNS",
        "LABELS",
        "LEASE_S",
        "LFS_LIMIT",
        "LISTEN",
        "LOCAL",
        "LOCAL_PATHS",
        "LOG_LEVEL",
        "LOG_LIMIT",
        "LONG_LEASE_S",
        "MEMORY",
        "METRICS_LISTEN",
        "NAME",
        "PASS_ENV",
        "POOL",
        "PROJECT_CHANGES_BURST",
        "PROJECT_CHANGES_PER_S",
        "PROJECT_JOBS_MOST",
        "PROJECT_RUNS_MOST",
        "PUBLIC_URL",
        "QUARANTINE_AFTER",
        "QUEUE_TIMEOUT_S",
        "READY_FD",
        "READ_ONLY_PATHS",
        "S3_ACCESS_KEY_ID",
        "S3_ENDPOINT",
        "S3_REGION",
        "S3_SECRET_ACCESS_KEY",
        "SLOTS",
        "SPOOL_AGENT",
        "SPOOL_ATTEMPT",
        "STREAMS_MOST",
        "TOKEN_FILE",
        "TOOL_PATHS",
    )
)
"""Settings of the daemons, which a person may have exported in the same shell."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`url` empty: the embedded coordinator of `state`. `warnings`: sentences for stderr."""

    url: str
    token: str = field(repr=False)
    insecure: bool
    root_certificates: bytes | None = field(repr=False)
    state: Path
    traceback: bool
    environment: Mapping[str, str] = field(repr=False)
    warnings: tuple[str, ...] = ()


def read(environment: Mapping[str, str]) -> Settings:
    """Reads `HEADRACE_*` and `XDG_STATE_HOME`.

    Raises:
        BadInput: with every mistake: a misspelt name, a value that cannot be read.

    """
    found = check(environment, {*CLIENT, "HEADRACE_TRACEBACK"}, OF_DAEMONS)
    mistakes = list(found.mistakes)
    insecure = environment.get("HEADRACE_INSECURE", "").lower()
    if insecure not in {"", "0", "1", "false", "true", "no", "yes"}:
        mistakes.append("HEADRACE_INSECURE must be 0 or 1")
    certificates = None
    if path := environment.get("HEADRACE_CA_FILE"):
        try:
            certificates = Path(path).read_bytes()
        except OSError as error:
            mistakes.append(f"HEADRACE_CA_FILE: cannot read {path}: {error.strerror}")
    if mistakes:
        raise BadInput("the settings are wrong", tuple(Violation("", each) for each in mistakes))
    return Settings(
        url=environment.get("HEADRACE_URL", "").strip(),
        token=environment.get("HEADRACE_TOKEN", "").strip(),
        insecure=insecure in {"1", "true", "yes"},
        root_certificates=certificates,
        state=_state(environment),
        traceback=environment.get("HEADRACE_TRACEBACK", "") not in {"", "0"},
        environment=environment,
        warnings=found.warnings,
    )


def _state(environment: Mapping[str, str]) -> Path:
    """`$XDG_STATE_HOME/headrace`; a relative path there is passed over, as the specification says."""
    given = environment.get("XDG_STATE_HOME", "")
    if given.startswith("/"):
        return Path(given) / "headrace"
    home = environment.get("HOME") or str(Path.home())
    return Path(home) / ".local/state/headrace"
