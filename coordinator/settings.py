"""The coordinator's settings. The help of each field is one line; the reference page is printed from it."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from headrace.pipeline.amounts import DURATION
from headrace.settings_names import PREFIX

_DAY_S = 86_400


class Settings(BaseSettings):
    """Everything that an operator can set on a coordinator."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=PREFIX)

    data_dir: Path = Field(
        Path("/var/lib/headrace/coordinator"), description="tokens, embedded database, file:// blobs"
    )
    listen: str = Field("127.0.0.1:7433", description="HOST:PORT of gRPC, for agents and clients")
    http_listen: str = Field("127.0.0.1:7434", description="HOST:PORT of /metrics, /healthz, /readyz")
    blob_listen: str = Field("127.0.0.1:7435", description="HOST:PORT of the blob endpoint; used with file:// alone")
    blob_public_url: str = Field("", description="URL of the blob endpoint as agents and clients reach it")
    public_url: str = Field(
        "", description="URL of this coordinator as people reach it: jobs get it in HEADRACE_RUN_URL"
    )
    insecure: bool = Field(default=False, description="speak without TLS on other addresses than loopback")
    database_url: SecretStr = Field(SecretStr(""), description="postgresql://…; empty: the embedded PostgreSQL")
    database_direct_url: SecretStr = Field(
        SecretStr(""),
        description="the same database without the pooler, if HEADRACE_DATABASE_URL is one's in transaction mode",
    )
    database_connections: int = Field(10, ge=3, le=200, description="connections of this replica, at most")
    blob_url: str = Field("", description="file:///FOLDER or s3://BUCKET/PREFIX; empty: below the data directory")
    s3_endpoint: str = Field("", description="URL of an S3-compatible store; empty: AWS")
    s3_region: str = Field("us-east-1", description="region of the bucket")
    s3_access_key_id: str = Field("", description="access key of the bucket")
    s3_secret_access_key: SecretStr = Field(SecretStr(""), description="its secret; never as a flag")
    lease_s: float = Field(
        30.0,
        ge=1,
        le=600,
        description="how long an agent may be silent, in seconds; below 15 a link that falls silent costs its jobs",
    )
    heartbeat_s: float = Field(
        5.0, ge=0.1, le=60, description="how often an agent speaks up, in seconds", validate_default=True
    )
    long_lease_s: float = Field(600.0, ge=10, description="the same for deployments that have started")
    queue_timeout_s: float = Field(86_400.0, ge=1, description="how long a job may wait for an agent, in seconds")
    quarantine_after: int = Field(
        5, ge=0, le=1000, description="attempts in a row that end `errored` before an agent gets no more; 0: never"
    )
    keep_runs: str = Field("90d", description="how long a run is kept after its end, with its logs; 0: for ever")
    hellos_per_s: float = Field(
        250.0, gt=0, le=100_000, description="agents that this replica lets connect in a second, in the long run"
    )
    hellos_burst: int = Field(500, ge=2, le=100_000, description="agents that it lets connect at once")
    changes_per_s: float = Field(
        100.0,
        gt=0,
        le=100_000,
        description="runs that one token may create, cancel, retry in a second, in the long run",
    )
    changes_burst: int = Field(1_000, ge=1, le=1_000_000, description="the same at once")
    project_changes_per_s: float = Field(
        20.0, gt=0, le=100_000, description="the same for runs created in one project, and for each run by itself"
    )
    project_changes_burst: int = Field(200, ge=1, le=1_000_000, description="the same at once")
    project_runs_most: int = Field(
        5_000, ge=1, le=100_000, description="runs of one project that have not ended; beyond it the next is refused"
    )
    project_jobs_most: int = Field(
        100_000, ge=1, le=10_000_000, description="jobs of one project that have not ended; the same"
    )
    streams_most: int = Field(
        2_000, ge=1, le=1_000_000, description="watches and log tails that one token may have open at this replica"
    )
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug | info | warning | error")
    embedded: bool = Field(
        default=False, description="the fleet cannot grow: a job that no agent can take fails at once"
    )
    local_paths: bool = Field(default=False, description="callers are on this machine: a run may name a path here")
    ready_fd: int | None = Field(None, description="descriptor that gets one JSON line when it serves")

    @field_validator("listen", "http_listen", "blob_listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65_535:
            raise ValueError(f"{value!r} is not HOST:PORT")
        return value

    @field_validator("database_direct_url")
    @classmethod
    def _is_beside_a_pooler(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        if value.get_secret_value() and not info.data["database_url"].get_secret_value():
            raise ValueError("it stands beside the address of a pooler: set HEADRACE_DATABASE_URL too, or none of them")
        return value

    @field_validator("keep_runs")
    @classmethod
    def _is_a_day_or_more(cls, value: str) -> str:
        if value != "0" and _seconds(value) < _DAY_S:
            raise ValueError(f"{value!r} is no time of a day (`1d`) or more, such as `90d` or `36h`; 0 means for ever")
        return value

    @property
    def keep_runs_s(self) -> float:
        """How long a run is kept after its end, in seconds; 0: for ever."""
        return _seconds(self.keep_runs)

    @field_validator("heartbeat_s")
    @classmethod
    def _is_within_lease(cls, value: float, info: ValidationInfo) -> float:
        lease = info.data.get("lease_s", 3 * value)
        if lease < 3 * value:
            raise ValueError(
                f"a lease of {lease:g} s (HEADRACE_LEASE_S) is less than three heartbeats of {value:g} s:"
                " every job would be lost; raise the one, or lower the other"
            )
        return value


def _seconds(text: str) -> float:
    """Of a duration as pipelines have them; 0 for what is none."""
    found = re.fullmatch(DURATION, text, re.ASCII)
    parts = found.groups() if found else ()
    return sum(int(part or 0) * unit for part, unit in zip(parts, (_DAY_S, 3600, 60, 1), strict=False))


def is_loopback(address: str) -> bool:
    """Whether `host:port` can be reached from this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    return host in {"localhost", "::1"} or host.startswith("127.")


def is_wildcard(address: str) -> bool:
    """Whether `host:port` means all addresses of this machine, and so is the name of none."""
    return address.rpartition(":")[0].strip("[]") in {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
