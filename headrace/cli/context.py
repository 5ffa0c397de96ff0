"""What a command is given: the environment read into settings, and a connection to the coordinator it means."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.cli.embedded import Endpoint, Owner
    from headrace.cli.settings import Settings
    from headrace.client import Client, SyncClient


class Need(Enum):
    """What a command wants of an embedded coordinator that is not running."""

    LIVE = auto()
    """Nothing: without one there is nothing to do, and that is said."""
    READ = auto()
    """A coordinator for the length of the command, without an agent."""
    WORK = auto()
    """A coordinator and an agent, until the work is done."""


@dataclass(frozen=True, slots=True)
class Link:
    """Where the coordinator is. `endpoint`: it is the embedded one; `owner`: and this process started it."""

    url: str
    token: str = field(repr=False)
    insecure: bool = False
    root_certificates: bytes | None = field(default=None, repr=False)
    endpoint: Endpoint | None = None
    owner: Owner | None = None

    def client(self) -> Client:
        """A client for asyncio."""
        from headrace.client import Client

        return Client(self.url, self.token, insecure=self.insecure, root_certificates=self.root_certificates)

    def sync_client(self) -> SyncClient:
        """A blocking client."""
        from headrace.client import SyncClient

        return SyncClient(self.url, self.token, insecure=self.insecure, root_certificates=self.root_certificates)


class Context:
    """One invocation of the command line."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment

    @cached_property
    def settings(self) -> Settings:
        """Read when first asked for; says its warnings then."""
        from headrace.cli.settings import read

        settings = read(self.environment)
        for warning in settings.warnings:
            sys.stderr.write(f"headrace: {warning}\n")
        return settings

    @contextmanager
    def link(self, need: Need) -> Iterator[Link]:
        """A coordinator: the one that HEADRACE_URL names, else the live embedded one, else what `need` says."""
        settings = self.settings
        if settings.url:
            yield Link(settings.url, settings.token, settings.insecure, settings.root_certificates)
            return
        from headrace.cli.embedded import Embedded, Owner
        from headrace.errors import Unreachable

        embedded = Embedded(settings.state, self.environment)
        if need is Need.LIVE:
            live = embedded.live(with_agent=False)
            if live is None:
                raise Unreachable(
                    "", "no coordinator is running here: start one with `headrace up`, or name one in HEADRACE_URL"
                )
            yield Link(live.address, live.token, endpoint=live)
            return
        with embedded.live_or_own(with_agent=need is Need.WORK) as found:
            owner = found if isinstance(found, Owner) else None
            endpoint = found.endpoint if isinstance(found, Owner) else found
            yield Link(endpoint.address, endpoint.token, endpoint=endpoint, owner=owner)

    @contextmanager
    def client(self, need: Need) -> Iterator[SyncClient]:
        """A blocking client on `link`."""
        with self.link(need) as link, link.sync_client() as client:
            yield client
