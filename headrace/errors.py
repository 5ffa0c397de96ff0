"""What can go wrong when one speaks with a coordinator, as one small tree.

Each error is one sentence for a person (what, where, how to mend it). Its class says how the command line ends
(`exit_code`, contracts: 0 passed, 1 failed, 2 bad input, 3 cannot reach or not allowed, 130 canceled) and whether
the same request may simply be tried again (`retry`). A failed *job* is no error: it is a state of the run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar


class HeadraceError(Exception):
    """The root of the tree. `str(error)` is the sentence."""

    exit_code: ClassVar[int] = 3
    retry: ClassVar[bool] = False

    @property
    def sentence(self) -> str:
        """The sentence alone, without where it came from."""
        return str(self.args[0]) if self.args else type(self).__name__

    def to_json(self) -> dict[str, object]:
        """`{"error": word, "sentence": str}`, and what the class adds."""
        return {"error": type(self).__name__, "sentence": str(self)}


@dataclass(frozen=True, slots=True)
class Violation:
    """One mistake. `where` is `file:line:column`, a field path, or empty."""

    where: str
    sentence: str

    @property
    def in_a_file(self) -> bool:
        """Whether `where` is a place that an editor can go to."""
        return re.search(r":\d+:\d+$", self.where) is not None

    def __str__(self) -> str:
        told = not self.where or self.sentence.startswith(f"{self.where} ")  # a field that the sentence begins with
        return self.sentence if told else f"{self.where}: {self.sentence}"


class BadInput(HeadraceError):
    """What was asked for is wrong in itself: asking again does not help. `violations` names every mistake."""

    exit_code = 2

    def __init__(self, sentence: str, violations: tuple[Violation, ...] = ()) -> None:
        super().__init__(sentence)
        self.violations = violations

    def __str__(self) -> str:
        return "\n".join(str(each) for each in self.violations) if self.violations else self.sentence

    def to_json(self) -> dict[str, object]:
        """As for every error, with `violations`: a list of `{"where", "sentence"}`."""
        found = [{"where": each.where, "sentence": each.sentence} for each in self.violations]
        return super().to_json() | {"sentence": self.sentence, "violations": found}


class TooLarge(BadInput):
    """A message, a bundle or a file is over its limit; the sentence names both figures."""


class NotFound(HeadraceError):
    """There is no such run, job, artifact, agent or pool."""

    exit_code = 2


class Conflict(HeadraceError):
    """It cannot be done as things are now: the run has ended, the name is taken, the token is stale."""

    exit_code = 2


class NotAllowed(HeadraceError):
    """The token is missing, wrong, or not good for this."""


class Unreachable(HeadraceError):
    """Nobody answers at `address`, or the connection was cut; without an address nobody is there to be asked."""

    retry = True

    def __init__(self, address: str, sentence: str) -> None:
        super().__init__(sentence)
        self.address = address

    def __str__(self) -> str:
        return f"cannot reach the coordinator at {self.address}: {self.sentence}" if self.address else self.sentence

    def to_json(self) -> dict[str, object]:
        """As for every error, with `address`."""
        return super().to_json() | {"sentence": self.sentence, "address": self.address}


class Busy(HeadraceError):
    """The coordinator asks to come back after `after` seconds."""

    retry = True

    def __init__(self, sentence: str, after: float) -> None:
        super().__init__(sentence)
        self.after = after

    def to_json(self) -> dict[str, object]:
        """As for every error, with `after` in seconds."""
        return super().to_json() | {"after": self.after}


class Unsupported(HeadraceError):
    """This coordinator does not know the call: it is older than the client."""


class Corrupt(HeadraceError):
    """What came is not what was announced: a digest, a length or a frame does not match."""


class ServerFailed(HeadraceError):
    """The coordinator failed at its own work; its log says more."""
