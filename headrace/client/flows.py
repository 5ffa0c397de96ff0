"""Each flow of the client, once: a generator that yields steps and is sent their results.

A flow does no I/O, reads no clock of its own and never sleeps: it says what it wants (`Call`, `Open`, `Next`,
`Wait`, …), and one of two thin drivers, `Client` (asyncio) or `SyncClient` (blocking), does it. Failures come in
as exceptions of `headrace.errors`; what a flow gives its reader on the way goes out as `Give`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from headrace.client import methods, wire
from headrace.client.frames import inflate
from headrace.client.methods import Method
from headrace.client.pace import Pace
from headrace.client.paths import inside
from headrace.client.types import LogBytes, LogEnd, LogGap, LogRecord, RunChange, SectionClosed, SectionOpened
from headrace.errors import Corrupt, HeadraceError
from headrace.v1 import blob_pb2, common_pb2, log_pb2, run_pb2

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Result = TypeVar("Result")


class End:
    """The stream ended of itself."""


END: Final = End()


@dataclass(frozen=True, slots=True)
class Call:
    """One request, one response: the driver sends the response back."""

    method: Method[Any, Any]
    request: Message


@dataclass(frozen=True, slots=True)
class Open:
    """Open a stream of responses, in place of the one before."""

    method: Method[Any, Any]
    request: Message


@dataclass(frozen=True, slots=True)
class Next:
    """The stream's next message, or `END`."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Treat the stream as cut: the driver throws `Unreachable` with its address and this sentence."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Sleep for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Give:
    """Hand this to the reader."""

    value: Any


@dataclass(frozen=True, slots=True)
class Fetch:
    """Download by a signed request to a file, with digest and length checked."""

    transfer: common_pb2.Transfer
    target: Path
    executable: bool


@dataclass(frozen=True, slots=True)
class Send:
    """Upload a file by a signed request."""

    transfer: common_pb2.Transfer
    origin: Path


Step = Call | Open | Next | Cut | Wait | Give | Fetch | Send
Flow = Generator[Step, Any, Result]


def call(pace: Pace, method: Method[Request, Response], request: Request) -> Flow[Response]:
    """One request, tried again under the same request id while that may help."""
    trial = pace.trial()
    while True:
        try:
            response: Response = yield Call(method, request)
        except HeadraceError as error:
            yield Wait(trial.wait_after(error))
        else:
            trial.succeeded()
            return response


def called(
    pace: Pace, method: Method[Request, Response], request: Request, value: Callable[[Response], Result]
) -> Flow[Result]:
    """`call`, with the response made a value."""
    return value((yield from call(pace, method, request)))


def watch(pace: Pace, run_id: int, after: int) -> Flow[None]:
    """Gives every `RunChange` in order, over any number of connections, until the run has ended.

    One that was cut off from others of the same moment comes again with them: it is a state, so that does no harm.
    """
    trial, ended = pace.trial(), False
    while True:
        try:
            yield Open(methods.WATCH, run_pb2.WatchRunRequest(run_id=run_id, after=after))
            while not isinstance(message := (yield Next()), End):
                trial.succeeded()
                after = max(after, message.sequence)
                change = wire.change(message)
                ended = _ended(change, otherwise=ended)
                yield Give(change)
            if ended or (yield from _nothing_left(pace, run_id, after)):
                return
            yield Cut("the stream ended before the run did")
        except HeadraceError as error:
            yield Wait(trial.wait_after(error))


def _ended(change: RunChange, *, otherwise: bool) -> bool:
    run = change.snapshot or change.run
    return otherwise if run is None else run.ended


def _nothing_left(pace: Pace, run_id: int, after: int) -> Flow[bool]:
    """Whether the run had ended before the change that the watch began behind."""
    run = yield from call(pace, methods.GET, run_pb2.GetRunRequest(run_id=run_id))
    return wire.run(run).ended and run.sequence <= after


@dataclass(frozen=True, slots=True)
class TailOf:
    """What is tailed. `number` 0: the newest attempt; `offset`: the first byte wanted."""

    run_id: int
    job: str
    number: int = 0
    stream: str = "main"
    offset: int = 0
    follow: bool = True


def tail(pace: Pace, what: TailOf) -> Flow[None]:
    """Gives every record from `what.offset` on once, in order, over any number of connections; last a `LogEnd`.

    The attempt that answered first is kept: a retry in the middle does not splice two logs.
    """
    trial, reader = pace.trial(), _Reader(what.number, what.offset)
    while True:
        try:
            yield Open(methods.TAIL, reader.request(what))
            while not isinstance(message := (yield Next()), End):
                trial.succeeded()
                for record in reader.read(message):
                    yield Give(record)
                if message.HasField("end"):
                    break
            if reader.complete or (reader.at_end and not what.follow):
                yield Give(LogEnd(reader.number, reader.offset, complete=reader.complete))
                return
            yield Cut("the log ended before it was complete")
        except HeadraceError as error:
            yield Wait(trial.wait_after(error))


class _Reader:
    """Where a tail stands: attempt, next byte, newest record. What was seen before is skipped."""

    def __init__(self, number: int, offset: int) -> None:
        self.number = number
        self.offset = offset
        self.at_end = False
        self.complete = False
        self._sequence = 0

    def request(self, what: TailOf) -> log_pb2.TailRequest:
        """Asks for what is missing."""
        self.at_end = False
        request = log_pb2.TailRequest(
            run_id=what.run_id, job=what.job, stream=what.stream, offset=self.offset, follow=what.follow
        )
        setattr(request, "try", self.number)  # a keyword of Python: it has no attribute syntax
        return request

    def read(self, message: log_pb2.TailResponse) -> list[LogRecord]:
        """The new records in a message."""
        self.number = getattr(message, "try") or self.number
        if message.HasField("end"):
            self.at_end, self.complete = True, message.end.complete
            return []
        record = message.record
        if record.sequence <= self._sequence:
            return []
        self._sequence = record.sequence
        match record.WhichOneof("what"):
            case "frame":
                return self._bytes(record)
            case "opened":
                it = record.opened
                return [SectionOpened(self.number, record.offset, it.section, it.kind, it.title, it.step)]
            case "closed":
                section, result = record.closed.section, record.closed.result
                return [SectionClosed(self.number, record.offset, section, result)]
            case _:
                return []

    def _bytes(self, record: log_pb2.Record) -> list[LogRecord]:
        data, found = inflate(record.frame), list[LogRecord]()
        if record.offset > self.offset:
            found.append(LogGap(self.number, record.offset, record.offset - self.offset))
            self.offset = record.offset
        data = data[self.offset - record.offset :]
        if data:
            at = wire.moment(record.time_ms)
            found.append(LogBytes(self.number, self.offset, record.frame.section, at, data, record.frame.ours))
            self.offset += len(data)
        return found


def download(pace: Pace, run_id: int, name: str, folder: Path) -> Flow[list[Path]]:
    """Fetches the files of an artifact below `folder`; signed requests that grew old are asked for anew."""
    request = blob_pb2.DownloadArtifactRequest(run_id=run_id, name=name)
    response = yield from call(pace, methods.DOWNLOAD, request)
    paths = [inside(folder, each.path) for each in response.artifact.files]
    for index, (file, path) in enumerate(zip(response.artifact.files, paths, strict=True)):
        trial = pace.trial()
        while True:
            transfer = _transfer(response, index)
            if (transfer.sha256, transfer.size) != (file.sha256, file.size):
                raise Corrupt(f"{file.path}: the coordinator signed another file than the artifact names")
            try:
                yield Fetch(transfer, path, file.executable)
                break
            except HeadraceError as error:
                yield Wait(trial.wait_after(error))
                response = yield from call(pace, methods.DOWNLOAD, request)
    return paths


def _transfer(response: blob_pb2.DownloadArtifactResponse, index: int) -> common_pb2.Transfer:
    if index >= len(response.transfers):
        raise Corrupt(f"artifact {response.artifact.name}: the coordinator signed too few of its files")
    return response.transfers[index]


def send_bundle(pace: Pace, sha256: str, size: int, origin: Path) -> Flow[str]:
    """Hands in a git bundle, unless it is there already; its digest is what a `Source` names."""
    trial = pace.trial()
    request = blob_pb2.PrepareBundleRequest(bundle=blob_pb2.BlobFile(sha256=sha256, size=size))
    while True:
        response = yield from call(pace, methods.BUNDLE, request)
        if response.transfer.present:
            return sha256
        try:
            yield Send(response.transfer, origin)
        except HeadraceError as error:
            yield Wait(trial.wait_after(error))
        else:
            return sha256
