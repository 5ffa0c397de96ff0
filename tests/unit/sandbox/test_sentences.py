"""What a job is told when the engine fails it, and whose failure that is."""

from __future__ import annotations

import pytest
from docker.errors import APIError, DockerException, ImageNotFound
from requests import exceptions

from agent.problems import Cause
from agent.sandbox.sentences import unavailable


def raised_from(error: Exception, cause: Exception) -> Exception:
    """As the library wraps it."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (exceptions.ConnectionError("Connection aborted."), Cause.ERRORED),
        (exceptions.ReadTimeout("60 s"), Cause.ERRORED),
        (exceptions.ChunkedEncodingError("the pull broke off"), Cause.ERRORED),
        (raised_from(DockerException("no version"), exceptions.ConnectionError("refused")), Cause.ERRORED),
        (ImageNotFound("no such image"), Cause.IMAGE_UNAVAILABLE),
        (APIError("denied"), Cause.IMAGE_UNAVAILABLE),
        (DockerException("pull access denied"), Cause.IMAGE_UNAVAILABLE),
        (TimeoutError(), Cause.IMAGE_UNAVAILABLE),
    ],
)
def test_an_engine_that_is_gone_is_the_machines_failure_and_no_images(error: Exception, cause: Cause) -> None:
    """Such a job is tried again; and nobody looks for a mistake in the image's name."""
    problem = unavailable("debian:12", error)
    assert problem.cause is cause
    assert "debian:12" in str(problem)
