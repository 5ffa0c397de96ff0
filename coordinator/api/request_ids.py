"""The ids of requests that create or change something: made by the client, anew for each request."""

from __future__ import annotations

from coordinator.errors import BadInput


def check_request_id(request_id: str) -> None:
    """Refuses what can be nobody's own. Raises BadInput."""
    if not 8 <= len(request_id) <= 64:
        raise BadInput("a request id has 8 to 64 characters, made anew for each request")
