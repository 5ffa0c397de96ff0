"""The agent's settings: flag, else environment `HEADRACE_*`, else TOML file, else default. Read once, in `app.py`.

The help of each field is one line; the reference page is printed from it.
"""

from __future__ import annotations

import os
import socket
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from headrace.daemon.settings import BadSettings
from headrace.settings_names import PREFIX


def _pairs(value: object) -> object:
    """`a=1,b=2` as a mapping."""
    if not isinstance(value, str):
        return value
    words = [word.strip() for word in value.split(",") if word.strip()]
    if any("=" not in word for word in words):
        raise ValueError("write labels as NAME=VALUE,NAME=VALUE")
    return dict(word.split("=", 1) for word in words)


def _words(value: object) -> object:
    """`a,b` as a list."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _paths(value: object) -> object:
    """`/a:/b` as a list."""
    return [word for word in value.split(":") if word] if isinstance(value, str) else value


_LEAST_SPOOL = 1 << 20
_SMALLEST_NETWORK = 28
Labels = Annotated[dict[str, str], NoDecode, BeforeValidator(_pairs)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_paths)]


def _default_data_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/headrace/agent")
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "headrace" / "agent"


class Settings(BaseSettings):
    """Everything that an operator can set on an agent."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=PREFIX)

    url: Words = Field(("127.0.0.1:7433",), description="coordinators as HOST:PORT, several with commas")
    token: SecretStr = Field(SecretStr(""), description="this agent's credential; never as a flag")
    token_file: Path | None = Field(None, description="file that holds the credential")
    ca_file: Path | None = Field(None, description="PEM certificates to trust instead of the machine's own")
    insecure: bool = Field(default=False, description="speak without TLS to other machines too")
    name: str = Field(default_factory=socket.gethostname, description="the agent's name, unique in the fleet")
    pool: str = Field("default", description="the pool that it serves")
    labels: Labels = Field(default_factory=dict, description="facts that jobs may require, as NAME=VALUE,…")
    slots: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024, description="jobs at a time")
    data_dir: Path = Field(default_factory=_default_data_dir, description="where the agent keeps its state")
    metrics_listen: str = Field("127.0.0.1:0", description="HOST:PORT of /metrics, /healthz, /readyz; empty: none")
    cpu: float | None = Field(None, gt=0, description="cores for all jobs together; left out: all")
    memory: int | None = Field(None, ge=1 << 24, description="bytes for all jobs together; left out: nine tenths")
    allow_host: bool = Field(default=False, description="let jobs ask for `sandbox: host`, that is for no sandbox")
    docker_image: str = Field("", description="image of jobs that name none, where bubblewrap is missing")
    docker_runtime: str = Field(
        "", description="OCI runtime of docker jobs, as the engine names it; empty: its default"
    )
    job_addresses: IPv4Network = Field(
        IPv4Network("10.222.0.0/16"), description="addresses of bubblewrap jobs with a network, four for each (root)"
    )
    tool_paths: Paths = Field((), description="toolchains outside /usr that jobs see read-only, with colons")
    read_only_paths: Paths = Field((), description="more files and folders that jobs see read-only, with colons")
    pass_env: bool = Field(default=False, description="give jobs the agent's own proxy, CA and package index variables")
    lfs_limit: int = Field(10 << 30, ge=1 << 20, description="bytes of large files (git LFS) in one job's checkout")
    log_limit: int = Field(2 << 30, ge=1 << 20, description="bytes of output in one attempt's log; the rest is dropped")
    spool_attempt: int = Field(256 << 20, ge=1 << 20, description="bytes of log kept on disk for one attempt")
    spool_agent: int = Field(
        2 << 30, ge=1 << 20, description="bytes of log kept on disk in all; above it no job is taken"
    )
    first_uid: int = Field(200_000, ge=1000, description="first of the uids, one for each slot, that jobs get (root)")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug | info | warning | error")
    local: bool = Field(
        default=False, description="serves a local `headrace run`: own code may run under the user's hand"
    )
    ready_fd: int | None = Field(None, description="descriptor that gets one JSON line at the first welcome")

    @field_validator("url")
    @classmethod
    def _is_address(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one coordinator as HOST:PORT")
        for each in value:
            host, _, port = each.rpartition(":")
            if not host or not port.isdigit() or "/" in each:
                raise ValueError(f"{each!r} is not HOST:PORT")
        return value

    @field_validator("job_addresses")
    @classmethod
    def _has_room(cls, value: IPv4Network) -> IPv4Network:
        if value.prefixlen > _SMALLEST_NETWORK:
            raise ValueError(f"{value} has no room for jobs: name a network of at least /{_SMALLEST_NETWORK}")
        return value

    @property
    def spool_limit(self) -> int:
        """Bytes of log on disk for one attempt, so that all slots together keep to `spool_agent`."""
        return min(self.spool_attempt, max(_LEAST_SPOOL, self.spool_agent // self.slots))

    def credential(self) -> str:
        """The token itself. Raises `BadSettings` when its file cannot be read."""
        if self.token_file is None or self.token.get_secret_value():
            return self.token.get_secret_value()
        try:
            return self.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is no text"
            raise BadSettings(f"token_file: {self.token_file} cannot be read: {said}") from error

    def is_secure(self, address: str) -> bool:
        """Whether to speak TLS to this address. Raises `BadSettings` where neither TLS nor plain text may be."""
        if self.ca_file is not None:
            return True
        host = address.rpartition(":")[0].strip("[]")
        return not (self.insecure or host in {"localhost", "::1"} or host.startswith("127."))
