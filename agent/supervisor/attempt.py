"""One attempt in its supervisor: the state machine's effects made true, and the log.

Everything here runs in one thread, called by the loop; no call waits.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from agent.problems import Cause
from agent.supervisor import machine
from agent.supervisor.cgroup import Counts, Meter, own_groups
from agent.supervisor.channels import Channels
from agent.supervisor.clocks import Clocks
from agent.supervisor.control import run_file, too_much
from agent.supervisor.deadline import Terms, overdue
from agent.supervisor.guard import Guard
from agent.supervisor.loop import Loop
from agent.supervisor.machine import Phase, State
from agent.supervisor.process import NotProved
from agent.supervisor.sandbox import Sandbox
from agent.supervisor.spawn import NotStarted
from agent.supervisor.writer import LogWriter

_READ: Final = 256 << 10
_SMALL: Final = 4 << 10
_REST_MS: Final = 2
_RETRY_MS: Final = 250
_SAMPLE_MS: Final = 1000
_KILLED: Final = 128 + 9
"""What a shell says of a process that was killed."""
_ARGUMENTS: Final = 2 << 20
"""Bytes that the arguments of a step may take in all: a quarter of the usual stack limit."""

Answer = Callable[[dict[str, Any]], None]
_MISSING: Final = {
    b"shell": (Cause.SHELL_MISSING, "the sandbox has no {shell}: choose another `shell`, or an image that has it"),
    b"workdir": (Cause.WORKDIR_MISSING, "the folder {cwd} does not exist in the sandbox, or cannot be entered"),
}


class Attempt:
    """Sandbox, steps and log of one attempt."""

    def __init__(self, loop: Loop, folder: Path, writer: LogWriter, terms: Terms, guard: Guard | None) -> None:
        self._loop = loop
        self._writer = writer
        self._terms = terms
        self._clocks = Clocks()
        self._channels = Channels(folder)
        self._sandbox = Sandbox(loop, guard, folder / "priv" / "launch.log", self._died)
        self._state = State()
        self._meter = Meter(())
        self._before = Counts()
        self._sampled = 0
        self._greeted = False
        self._resting_until: int | None = None
        self._step: dict[str, Any] = {}
        self._nonce = ""
        self._said_begun = False
        self._began: set[int] = set()
        self._began_ms = 0
        self._results: dict[int, dict[str, Any]] = {}
        self._waiting: dict[int, list[Answer]] = {}
        self._launching: list[Answer] = []
        self._ending: list[Answer] = []
        self._over: dict[str, Any] | None = None
        self._log_ended = False
        self.changes = 0
        """Grows whenever something happens that `facts` tells."""
        loop.watch(self._channels.res, self._res_came)
        loop.watch(self._channels.out, self._out_came)

    # What the agent asks

    def facts(self) -> dict[str, Any]:
        """The whole state, for an agent that was started again."""
        phase = "ended" if self._outcome else "idle" if self._state.phase is Phase.IDLE else "launched"
        return {
            "phase": phase,
            "running": self._state.step,
            "begun": sorted(self._began),
            "results": list(self._results.values()),
            "section": self._writer.open,
            "records": self._writer.records,
            "offset": self._writer.offset,
            "over": self._over,
            "outcome": self._outcome,
            "cancels": self._state.cancels,
            "kill_refused": self._sandbox.kill_refused,
            **self._sandbox.facts(),
        }

    def launch(self, asked: dict[str, Any], answer: Answer) -> None:
        """Starts, or takes over, the sandbox; answers when it has said hello."""
        if self._state.phase not in {Phase.IDLE, Phase.LAUNCHING}:
            failed = self._over is not None and not self._began
            answer({"error": self._over["sentence"], "cause": Cause.ERRORED} if failed and self._over else {})
            return
        self._launching.append(answer)
        if self._state.phase is Phase.LAUNCHING:
            return
        self._feed(machine.Launched(self._clocks.boot()))
        try:
            if "container" in asked:
                self._sandbox.attach(asked["pid"], asked["container"], self._hello)
            else:
                self._sandbox.spawn(asked, self._hello)
        except (NotStarted, NotProved) as error:
            self._feed(machine.Died(said=str(error)))
            return
        self._meter = Meter(map(Path, asked["watched"]), around=own_groups())

    def step(self, asked: dict[str, Any], answer: Answer) -> None:
        """Runs a step and answers with its result; asked again: the same one."""
        number = asked["number"]
        self._end_if_due(self._clocks.boot())  # who stood still since the last round may be asked before the next one
        if number in self._results:
            answer(self._results[number])
        elif number == self._state.step:
            self._waiting[number].append(answer)
        elif self._state.phase in {Phase.ENDING, Phase.ENDED}:
            cause, sentence = self._state.why or Cause.SANDBOX_KILLED, self._state.sentence
            answer(self._result(number, None, cause, sentence or "the sandbox has ended", 0))
        elif self._state.phase is not Phase.WAITING:
            answer({"error": f"step {number} cannot begin: the sandbox is {self._state.phase}"})
        else:
            self._waiting[number] = [answer]
            self._begin(asked)

    def _begin(self, asked: dict[str, Any]) -> None:
        number = asked["number"]
        self._step = asked
        self._writer.open_section("step", asked["title"], step=asked.get("step", number))
        self._writer.say(asked.get("say", "").encode("utf-8", "surrogateescape"))
        self._began.add(number)
        self._began_ms = self._clocks.wall()
        wrong = too_much(asked["env"], _ARGUMENTS)
        if wrong:
            self._finished(machine.Finish(number, None, Cause.STEP_FAILED, wrong))
            return
        try:
            self._channels.place(number, run_file(asked["shell"], asked["cwd"], asked["env"]), asked["script"])
        except OSError as error:
            said = f"the script of the step could not be written: {error.strerror}"
            self._finished(machine.Finish(number, None, Cause.ERRORED, said))
            return
        self._before = self._meter.read()
        boot = self._clocks.boot()
        self._feed(machine.Stepped(number, asked["timeout_ms"], asked["grace_ms"], boot))

    def cancel(self, grace_ms: int, cause: Cause) -> None:
        """TERM, then KILL after the grace; the second time everything at once."""
        self._feed(machine.Canceled(grace_ms, cause, self._clocks.boot()))

    def kill(self, cause: Cause, sentence: str) -> None:
        """The sandbox, at once."""
        self._feed(machine.Killed(cause, sentence, self._clocks.boot()))

    def end(self, answer: Answer) -> None:
        """Ends the sandbox and the log; answers with the outcome once it is spooled."""
        self._ending.append(answer)
        self._feed(machine.Ended(self._clocks.boot()))

    @property
    def terms(self) -> Terms:
        """What the agent said about time."""
        return self._terms

    @terms.setter
    def terms(self, terms: Terms) -> None:
        self._terms = terms

    @property
    def kill_refused(self) -> bool:
        """Whether the system does not let us end the sandbox."""
        return self._sandbox.kill_refused

    @property
    def over(self) -> bool:
        """Whether nothing of the sandbox lives any more."""
        return self._state.phase is Phase.ENDED

    # The loop

    def tick(self) -> int | None:
        """What is due is done. Returns for how many milliseconds nothing will be."""
        now = self._clocks.boot()
        self._end_if_due(now)
        full = self._meter.last.pids_max > self._before.pids_max
        if self._state.due is not None and now >= self._state.due:
            self._meter.read()
            full = self._meter.last.pids_max > self._before.pids_max
            self._feed(machine.Ticked(now, full))
        if now >= self._sampled + _SAMPLE_MS and not self.over:
            self._sampled = now
            self._meter.read()
            self._sandbox.tidy()
        self._writer.tick()
        self._read_again(now)
        self._give_outcome()
        dues = (
            self._state.due,
            self._writer.due,
            self._resting_until,
            now + _RETRY_MS if self._writer.blocked else None,
        )
        waits = [due - now for due in dues if due is not None]
        return min(waits) if waits else None

    def _end_if_due(self, now: int) -> None:
        """Its time is over, or its log cannot be kept."""
        broken = (Cause.ERRORED, self._writer.broken) if self._writer.broken else None
        if not self.over and self._state.phase is not Phase.ENDING and (why := broken or overdue(self._terms, now)):
            self.kill(*why)

    def room(self) -> None:
        """The spool has room again."""
        self._writer.drain()

    def _read_again(self, now: int) -> None:
        """Output is read unless it came in drops a moment ago, or the spool is full."""
        out = self._channels.out
        if self._resting_until is not None and now >= self._resting_until:
            self._resting_until = None
        if self._writer.blocked or self._resting_until is not None:
            self._loop.unwatch(out)
        elif not self._loop.watches(out):
            self._loop.watch(out, self._out_came, select.EPOLLIN)

    def _out_came(self, _events: int) -> None:
        data = self._channels.read(_READ)
        self._writer.write(data)
        if len(data) < _SMALL:
            self._resting_until = self._clocks.boot() + _REST_MS

    def _res_came(self, _events: int) -> None:
        for line in self._channels.said():
            match line.split(b" "):
                case [b"hello", _] if not self._greeted:
                    self._greeted = True
                    self._hello()
                case [word, number, nonce, *rest] if self._ours(number, nonce):
                    self._told(word, rest)
                case _:
                    pass  # a job's: ignored

    def _ours(self, number: bytes, nonce: bytes) -> bool:
        return self._state.step is not None and (number, nonce) == (b"%d" % self._state.step, self._nonce.encode())

    def _told(self, word: bytes, rest: list[bytes]) -> None:
        match word, rest:
            case b"begun", []:
                if not self._said_begun:  # once: each one may cost a walk over all processes
                    self._said_begun = True
                    self._feed(machine.Begun(self._clocks.boot()))
            case b"missing", [what] if what in _MISSING:
                cause, sentence = _MISSING[what]
                shell = "sh" if self._step["shell"] == "default" else self._step["shell"]
                self._feed(machine.Missing(cause, sentence.format(shell=shell, cwd=self._step["cwd"])))
            case b"done", [code] if code.isdigit() and int(code) < 256:
                self._read_waiting()
                oom = self._meter.since(self._before, killed=int(code) == _KILLED)
                self._feed(machine.Done(int(code), oom))
            case _:
                pass

    def _read_waiting(self) -> None:
        """Exactly what stands in the pipe now: all that the step wrote, and no more of whoever goes on writing."""
        left = self._channels.waiting()
        while left > 0 and (data := self._channels.read(min(left, _READ))):
            left -= len(data)
            self._writer.write(data)

    def _hello(self) -> None:
        """Both have to come, in any order: the greeting, and the proof of pid 1."""
        if self._greeted and self._sandbox.known and self._state.phase is Phase.LAUNCHING:
            self._channels.hide()
            self._feed(machine.Hello())

    def _died(self) -> None:
        oom = self._meter.since(self._before)
        while data := self._channels.read(_READ):
            self._writer.write(data)
        full = self._meter.last.pids_max > self._before.pids_max
        self._feed(machine.Died(oom, full, self._sandbox.said()))

    # The effects

    def _feed(self, event: machine.Event) -> None:
        self._state, effects = machine.step(self._state, event)
        self.changes += 1
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: machine.Effect) -> None:
        match effect:
            case machine.Ready():
                self._answer_launch({})
            case machine.LaunchFailed(sentence):
                self._answer_launch({"error": sentence, "cause": Cause.ERRORED})
            case machine.WriteRun(number):
                self._write_run(number)
            case machine.Signal(name):
                self._sandbox.signal(name)
            case machine.KillSandbox():
                self._sandbox.kill()
            case machine.SayEnd():
                self._channels.send("end")
            case machine.Finish():
                self._finished(effect)
            case machine.Over(cause, sentence):
                self._over = {"cause": cause or "", "sentence": sentence}

    def _answer_launch(self, answer: dict[str, Any]) -> None:
        for waiting in self._launching:
            waiting(answer)
        self._launching.clear()

    def _write_run(self, number: int) -> None:
        self._nonce = os.urandom(8).hex()
        self._said_begun = False
        self._channels.widen()
        self._channels.send(f"run {number} {self._nonce}")

    def _finished(self, effect: machine.Finish) -> None:
        number, code, cause, sentence = effect
        if cause not in {None, Cause.STEP_FAILED}:
            self._writer.flush()
            self._writer.say(f"headrace: {sentence}\n".encode("utf-8", "surrogateescape"))
        self._writer.close_section(sentence)
        self._channels.remove(number)
        self._step = {}
        result = self._result(number, code, cause, sentence, self._began_ms)
        self._results[number] = result
        for waiting in self._waiting.pop(number, ()):
            waiting(result)

    def _result(self, number: int, code: int | None, cause: Cause | None, sentence: str, began: int) -> dict[str, Any]:
        # A shell folds signal n into 128 + n; only where we, or the kernel for memory, sent one it is certain.
        signaled = cause in {Cause.STEP_TIMED_OUT, Cause.CANCELED, Cause.JOB_TIMED_OUT, Cause.OOM, Cause.HOST_OOM}
        signum = code - 128 if code is not None and signaled and 128 < code <= 128 + 64 else None
        now = self._clocks.wall()
        return {
            "number": number,
            "exit_code": None if signum else code,
            "signal": signum,
            "cause": cause,
            "sentence": sentence,
            "began_ms": began or now,
            "ended_ms": now,
        }

    @property
    def _outcome(self) -> dict[str, Any] | None:
        """How it ended, and its log, once that is durable; None: it has not."""
        return {**self._writer.kept, **self._over} if self._log_ended and self._over is not None else None

    def _give_outcome(self) -> None:
        if not self._ending or not self.over or self._over is None:
            return
        if not self._log_ended:
            self._log_ended = True
            self._writer.outcome(self._over["cause"], self._over["sentence"])
            self.changes += 1
        if self._writer.durable:
            for waiting in self._ending:
                waiting(self._outcome or {})
            self._ending.clear()

    def close(self) -> None:
        """Removes the names in the file system; the spool stays."""
        self._channels.close()
