"""The coordinator's errors. Each class says what the wire shows and whether a client may try again.

CoordinatorError
├── BadInput            what a person did wrong; carries violations with their positions
├── NotFound            no such run, job, agent … ("not yours" answers alike)
├── NotAllowed          no or wrong credential
├── NotServed           an agent whose version this coordinator cannot serve
├── Conflict            the state of things does not admit it (a name taken, another instance alive)
├── StaleToken          a write with the token of an attempt that is no longer live
├── TooLate             the other side said nothing for too long
├── TooMuch             a bound was reached; try again after `retry_after_s`
└── StoreDown           the database cannot be reached or refused to work
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import grpc


class CoordinatorError(Exception):
    """The root: a defect of ours, unless a subclass says otherwise."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    retry: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Violation:
    """One mistake in what a person sent. `field` is a field path or `file:line:column`."""

    field: str
    description: str


class BadInput(CoordinatorError):
    """What was sent can never be right. One sentence, and one violation a mistake."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, sentence: str, violations: tuple[Violation, ...] = ()) -> None:
        super().__init__(sentence)
        self.violations = violations


class NotFound(CoordinatorError):
    """There is no such thing, or it is not the caller's."""

    code = grpc.StatusCode.NOT_FOUND


class NotAllowed(CoordinatorError):
    """A credential is missing or wrong."""

    code = grpc.StatusCode.UNAUTHENTICATED


class NotServed(CoordinatorError):
    """An agent of another time: only an upgrade of one side helps."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Conflict(CoordinatorError):
    """What is asked does not fit the present state."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class IdentityTaken(Conflict):
    """Another instance lives under this agent's identity."""

    code = grpc.StatusCode.ALREADY_EXISTS


class LateHello(Conflict):
    """A newer Hello of the same instance was here before: this one speaks of the past."""


class StaleToken(CoordinatorError):
    """The attempt is over, or was given to somebody else: the agent drops it."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class TooMuch(CoordinatorError):
    """A bound was reached. Try again after a while."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = True

    def __init__(self, sentence: str, retry_after_s: float = 1.0) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class TooLate(CoordinatorError):
    """The other side said nothing for too long. It may begin anew."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class StoreDown(CoordinatorError):
    """The database cannot be reached, or refused to work; nothing was changed, or it is not known whether."""

    code = grpc.StatusCode.UNAVAILABLE
    retry = True
