"""What the engine's failures are called in a job's log."""

from __future__ import annotations

from requests.exceptions import HTTPError, RequestException

from agent.problems import Cause, JobProblem


def unavailable(name: str, error: Exception) -> JobProblem:
    """An image that is not here and cannot be pulled; or nobody was there who could have said so."""
    if _is_silent(error):
        return JobProblem(Cause.ERRORED, f"the engine gave no answer when asked for image {name}: {one_line(error)}")
    sentence = f"image {name} cannot be had: {one_line(error)}; check its name, its tag and who may pull it"
    return JobProblem(Cause.IMAGE_UNAVAILABLE, sentence)


def not_started(image: str, error: Exception) -> JobProblem:
    """A job's container that the engine did not make or start."""
    said = one_line(error)
    if '"sh": executable file not found' in said:
        sentence = f"image {image} has no sh, and this agent has no static busybox to stand in for it"
        return JobProblem(Cause.SHELL_MISSING, sentence)
    return JobProblem(Cause.ERRORED, f"the container could not be started: {said}")


def _is_silent(error: BaseException | None) -> bool:
    """Whether it is the connection to the engine that failed: what the engine itself says is an `HTTPError`."""
    while error is not None:
        if isinstance(error, RequestException) and not isinstance(error, HTTPError):
            return True
        error = error.__cause__ or error.__context__
    return False


def one_line(error: Exception) -> str:
    """What the engine said, in one line, without the client's own wrapping."""
    if explanation := getattr(error, "explanation", None):
        return " ".join(str(explanation).split())
    return " ".join(str(error).split()) or type(error).__name__
