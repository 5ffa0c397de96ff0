"""Who may call what: one table, deny by default.

Until enrolment there are two credentials, one for agents and one for clients. The identity of a caller comes
from the credential alone.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from enum import StrEnum


class Caller(StrEnum):
    """Whose credential it is."""

    AGENT = "agent"
    CLIENT = "client"


ANYONE: frozenset[Caller | None] = frozenset({None, *Caller})
AGENTS: frozenset[Caller | None] = frozenset({Caller.AGENT})
CLIENTS: frozenset[Caller | None] = frozenset({Caller.CLIENT})

RULES: Mapping[str, frozenset[Caller | None]] = {
    "/headrace.v1.AgentService/Session": AGENTS,
    "/headrace.v1.AgentService/Extend": AGENTS,
    "/headrace.v1.LogService/Append": AGENTS,
    "/headrace.v1.LogService/Tail": CLIENTS,
    "/headrace.v1.RunService/Create": CLIENTS,
    "/headrace.v1.RunService/Get": CLIENTS,
    "/headrace.v1.RunService/List": CLIENTS,
    "/headrace.v1.RunService/Watch": CLIENTS,
    "/headrace.v1.RunService/Cancel": CLIENTS,
    "/headrace.v1.RunService/Retry": CLIENTS,
    "/headrace.v1.RunService/Approve": CLIENTS,
    "/headrace.v1.BlobService/PrepareUpload": AGENTS,
    "/headrace.v1.BlobService/PublishArtifact": AGENTS,
    "/headrace.v1.BlobService/FetchArtifact": AGENTS,
    "/headrace.v1.BlobService/FetchBundle": AGENTS,
    "/headrace.v1.BlobService/ListArtifacts": CLIENTS,
    "/headrace.v1.BlobService/DownloadArtifact": CLIENTS,
    "/headrace.v1.BlobService/PrepareBundle": CLIENTS,
    "/headrace.v1.FleetService/ListAgents": CLIENTS,
    "/headrace.v1.FleetService/WatchAgents": CLIENTS,
    "/headrace.v1.FleetService/ListPools": CLIENTS,
    "/headrace.v1.FleetService/DrainAgent": CLIENTS,
    "/headrace.v1.FleetService/PausePool": CLIENTS,
    "/grpc.health.v1.Health/Check": ANYONE,
    "/grpc.health.v1.Health/List": ANYONE,
    "/grpc.health.v1.Health/Watch": ANYONE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": CLIENTS,
}


class Tokens:
    """The credentials of a data directory. Compared in constant time, never shown."""

    def __init__(self, tokens: Mapping[Caller, str]) -> None:
        self._tokens = {caller: token.encode() for caller, token in tokens.items()}

    def __repr__(self) -> str:
        return "Tokens(…)"

    def caller(self, authorization: str | bytes | None) -> Caller | None:
        """Whose credential stands in an `authorization` value; None: nobody's."""
        if authorization is None:
            return None
        raw = authorization if isinstance(authorization, bytes) else authorization.encode("utf-8", "replace")
        scheme, _, token = raw.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        found = None
        for caller, known in self._tokens.items():
            if hmac.compare_digest(known, token.strip()):
                found = caller
        return found


def allowed(method: str, caller: Caller | None) -> bool:
    """Whether the caller may call the method; a method without a rule is nobody's."""
    return caller in RULES.get(method, frozenset())
