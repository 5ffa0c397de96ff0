"""The judge: what must hold, whatever breaks. It keeps books of its own and asks the core nothing.

It is told what is true outside (commands that really begin and end, what people asked for, what went over the
wire) and looks at the database after every commit.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.simulation.log_judge import LogJudge
from tests.harness.memory_rows import Rows
from tests.harness.memory_tables import JobRow

LEASE = 30.0
LIVE = ("leased", "running")
OVER = ("passed", "failed", "canceled", "skipped")


@dataclass(frozen=True)
class Wanted:
    """A job as a person wrote it. `needs`: keys; None: all jobs of all earlier stages."""

    key: str
    stage: int
    needs: tuple[str, ...] | None
    environment: str


class Broken(AssertionError):
    """A property does not hold."""


class Judge:
    """Raises nothing itself: what it finds is in `complaints`, so that no part can swallow it."""

    def __init__(self, clock: Callable[[], float], long_lease: float) -> None:
        self._clock = clock
        self._long_lease = long_lease
        self.complaints: list[str] = []
        self.trace: list[str] = []
        self.graphs: dict[str, tuple[Wanted, ...]] = {}
        """By request id of the CreateRun."""
        self.asked_again: Counter[int] = Counter()
        """How often a person retried something that reaches this job."""
        self.begun: dict[int, list[int]] = defaultdict(list)
        """Job -> attempts whose commands really began."""
        self.commands: dict[int, str] = {}
        """Attempt -> how its commands really ended; empty: they run."""
        self.accepted: dict[int, set[str]] = defaultdict(set)
        """Attempt -> ids of the outcomes that were accepted over the wire."""
        self.outcomes: dict[int, str] = {}
        """Attempt -> the outcome that the database has shown."""
        self.passes: Counter[int] = Counter()
        self.holds: Callable[[str, int], bool] = lambda agent, attempt: True
        """Whether an agent really has an attempt of which it still has to report."""
        self._heard: dict[int, tuple[str, int, float]] = {}
        """Agent -> its session, the counter, and since when the counter stands."""
        self._states: dict[int, str] = {}
        self._judged: set[int] = set()
        self.answered: set[str] = set()
        """Requests that a person saw done."""
        self.forgotten: set[int] = set()
        """Attempts of which a failover has lost a commit: what they were promised need not hold."""
        self._lost_deployments: dict[int, float] = {}
        """Attempt -> when its agent fell silent: after a long lease a person may start the job again."""
        self.logs = LogJudge(lambda sentence, holds: self.check(sentence, holds=holds))
        self._fences: dict[int, int] = {}
        """Job -> the highest fencing token that it began with."""

    def say(self, sentence: str) -> None:
        """A line of the trace."""
        self.trace.append(f"{self._clock():9.3f}  {sentence}")

    def complain(self, sentence: str) -> None:
        self.say(f"BROKEN: {sentence}")
        self.complaints.append(sentence)

    def check(self, sentence: str, *, holds: bool) -> None:
        if not holds:
            self.complain(sentence)

    def ended(self, task: asyncio.Task[None]) -> None:
        """One that nobody awaits must not fail in silence."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.complain(f"{task.get_name()} failed: {error!r}")

    # Told by the outside

    def command_begins(self, job_id: int, attempt_id: int, *, at_most_once: bool) -> None:
        self.say(f"attempt {attempt_id} of job {job_id} begins its commands")
        if at_most_once:
            running = [each for each in self.begun[job_id] if not self.commands[each]]
            self.check(
                f"deployment {job_id} begins while attempts {running} of it still run",
                holds=not running or not self.forgotten.isdisjoint((attempt_id, *running)),
            )
        self.begun[job_id].append(attempt_id)
        self.commands[attempt_id] = ""
        times = len(self.begun[job_id])
        if at_most_once:
            self.asked_again[job_id] += attempt_id in self.forgotten
            self.check(
                f"deployment {job_id} began {times} times, by attempts {self.begun[job_id]}",
                holds=times <= 1 + self.asked_again[job_id],
            )

    def fenced(self, job_id: int, token: int) -> None:
        """A deployment is about to begin with this number: outside systems refuse a lower one than they have seen."""
        before = self._fences.get(job_id, 0)
        self.check(f"deployment {job_id} got the fencing token {token} after {before}", holds=token > before)
        self._fences[job_id] = token

    def command_ends(self, attempt_id: int, outcome: str) -> None:
        self.say(f"attempt {attempt_id} ends: {outcome}")
        self.commands[attempt_id] = outcome

    def outcome_accepted(self, attempt_id: int, report: str) -> None:
        self.accepted[attempt_id].add(report)
        self.check(
            f"attempt {attempt_id} had {len(self.accepted[attempt_id])} outcomes accepted",
            holds=len(self.accepted[attempt_id]) == 1,
        )

    def taken_back(self, now: Rows, to: Rows) -> None:
        """Commits are lost, and with them what they promised: docs/operations/database.md says how to have none lost.

        What was claimed or permitted by them may begin again; a run that they made is gone.
        """
        self.logs.taken_back(now, to)
        for request in self.answered - to.requests.keys():
            self.graphs.pop(request, None)
        for key, row in now.attempts.items():
            job_id, kept = row.attempt.job_id, to.attempts.get(key)
            if kept is not None and kept == row and to.leases.get(key) == now.leases.get(key):
                continue
            self.asked_again[job_id] += key in self.begun[job_id] and key not in self.forgotten
            self.forgotten.add(key)
            if kept is None or str(kept.attempt.state) in LIVE:
                self.outcomes.pop(key, None)
            if kept is None:
                self._judged.discard(key)
        for session, kept_session in to.sessions.items():
            if kept_session.agent_id in self._heard:  # a counter that was taken back is nothing that an agent said
                heard_at = self._heard[kept_session.agent_id][2]
                self._heard[kept_session.agent_id] = session, kept_session.counter, heard_at
        for key, state in list(self._states.items()):
            job = to.jobs.get(key)
            if state == "passed" and (job is None or str(job.job.state) != "passed"):
                self.passes[key] -= 1
            if job is None:
                del self._states[key]
            else:
                self._states[key] = str(job.job.state)

    def holds_slots(self, agent: str, taken: int, slots: int) -> None:
        self.check(f"agent {agent} holds {taken} jobs in {slots} slots", holds=taken <= slots)

    # Looks at the database

    def look(self, rows: Rows) -> None:
        """After every commit."""
        self._one_life_each(rows)
        self._outcomes_stay(rows)
        self._order_is_kept(rows)
        self._slots_are_kept(rows)
        self._deployments_end_in_time()

    def look_at_logs(self, rows: Rows, attempts: Sequence[int]) -> None:
        """After every append."""
        for attempt in attempts:
            self.logs.look(attempt, rows)

    def listen(self, rows: Rows) -> None:
        """After every commit that lets an agent live on."""
        for key, session in rows.sessions.items():
            before = self._heard.get(session.agent_id)
            if before is None or before[:2] != (key, session.counter):
                self._heard[session.agent_id] = (key, session.counter, self._clock())

    def _lost_for_a_reason(self, rows: Rows, key: int) -> None:
        """A living agent that still has the attempt must have been silent for a whole lease."""
        agent = rows.agent(rows.attempts[key].agent_id)
        silent = self._clock() - self._heard[agent.id][2]
        self.check(
            f"attempt {key} is lost, but {agent.hello.name} has it and was heard {silent:.1f} s ago",
            holds=silent >= LEASE or not self.holds(agent.hello.name, key),
        )

    def _one_life_each(self, rows: Rows) -> None:
        living = Counter([row.attempt.job_id for row in rows.attempts.values() if row.attempt.state in LIVE])
        leased = Counter([lease.job_id for lease in rows.leases.values()])
        for job_id, count in living.items():
            self.check(f"job {job_id} has {count} living attempts", holds=count == 1)
            self.check(f"job {job_id} has {leased[job_id]} leases", holds=leased[job_id] == 1)
            self.check(f"job {job_id} is leased and can be claimed", holds=job_id not in rows.queue)

    def _outcomes_stay(self, rows: Rows) -> None:
        for key, row in rows.attempts.items():
            state = row.attempt.state
            if state in LIVE or self.outcomes.get(key) == state:
                continue
            if key not in self.outcomes and state in ("passed", "failed", "timed_out"):
                true = self.commands.get(key, "no commands")
                self.check(f"attempt {key} is recorded as {state}, and really it was {true}", holds=state == true)
            if key not in self.outcomes and state == "lost":
                self._lost_for_a_reason(rows, key)
                if row.out_of_contact_since is not None:
                    self._lost_deployments[key] = row.out_of_contact_since
            before = self.outcomes.setdefault(key, state)
            self.check(f"attempt {key} was {before} and is {state}", holds=before == state)
        for key, job in rows.jobs.items():
            state, before = job.job.state, self._states.get(key, "")
            if state == before:
                continue
            if state == "passed" and before != "passed":
                self.passes[key] += 1
                self.check(
                    f"job {key} passed {self.passes[key]} times", holds=self.passes[key] <= 1 + self.asked_again[key]
                )
            if before in OVER and state != before:
                self.check(f"job {key} was {before} and is {state}", holds=self.asked_again[key] > 0)
            self._states[key] = state

    def _deployments_end_in_time(self) -> None:
        for key, since in list(self._lost_deployments.items()):
            if self.commands.get(key, "over"):
                del self._lost_deployments[key]
            elif key not in self.forgotten:
                self.check(
                    f"deployment attempt {key} still runs {self._clock() - since:.1f} s after its agent fell silent",
                    holds=self._clock() < since + self._long_lease,
                )

    def _order_is_kept(self, rows: Rows) -> None:
        for key in rows.attempts.keys() - self._judged:
            self._judged.add(key)
            job_id = rows.attempts[key].attempt.job_id
            mine = self._wanted(rows, job_id)
            states = {other.job.key: str(other.job.state) for other in self._run_of(rows, job_id).values()}
            by_key = {each.key: each for each in self._graph(rows, job_id)}
            needs = mine.needs
            if needs is None:
                needs = tuple(each.key for each in by_key.values() if each.stage < mine.stage)
            for need in needs:
                self.check(f"`{mine.key}` was claimed while `{need}` is {states[need]}", holds=states[need] == "passed")

    def _run_of(self, rows: Rows, job_id: int) -> Mapping[int, JobRow]:
        return {key: rows.jobs[key] for key in rows.runs[rows.jobs[job_id].run_id].jobs}

    def _graph(self, rows: Rows, job_id: int) -> tuple[Wanted, ...]:
        run_id = rows.jobs[job_id].run_id
        request = next(name for name, made in rows.requests.items() if made == ("create", run_id))
        return self.graphs[request]

    def _wanted(self, rows: Rows, job_id: int) -> Wanted:
        return next(each for each in self._graph(rows, job_id) if each.key == rows.jobs[job_id].job.key)

    def _slots_are_kept(self, rows: Rows) -> None:
        held = Counter(lease.session_id for lease in rows.leases.values() if lease.session_id in rows.sessions)
        for session, count in held.items():
            assert session is not None
            agent = rows.agent(rows.sessions[session].agent_id)
            if count > agent.hello.slots:
                leases = [
                    f"{each.attempt_id} (no. {each.number})"
                    for each in rows.leases.values()
                    if each.session_id == session
                ]
                self.complain(f"{agent.hello.name} with {agent.hello.slots} slots has the leases {', '.join(leases)}")

    # In the end

    def at_rest(self, rows: Rows, mended: int) -> None:
        """When no fault happens any more and all has come to rest."""
        for request in self.graphs:
            self.check(f"`{request}` made no run", holds=request in rows.requests)
        runs = Counter(run for kind, run in rows.requests.values() if kind == "create")
        self.check(f"{len(rows.runs)} runs of {len(self.graphs)} requests", holds=len(rows.runs) == len(self.graphs))
        self.check("two requests made one run", holds=all(count == 1 for count in runs.values()))
        for key, row in rows.runs.items():
            self.check(f"run {key} is {row.run.state}", holds=str(row.run.state) in OVER)
        for key, job in rows.jobs.items():
            self.check(f"job {key} is {job.job.state}", holds=str(job.job.state) in OVER)
            if str(job.job.state) == "passed":
                winners = [each for each in self.begun[key] if self.outcomes.get(each) == "passed"]
                true = [each for each in winners if self.commands[each] == "passed"]
                self.check(f"job {key} passed, but no attempt did", holds=bool(winners) and winners == true)
        for key in self.accepted.keys() - self.forgotten:
            state = self.outcomes.get(key, "nothing")
            self.check(
                f"attempt {key}'s outcome was accepted, and it is {state}", holds=state not in ("lost", "returned")
            )
        self.logs.at_rest(rows)
        self.check(f"{len(rows.leases)} leases are left", holds=not rows.leases)
        self.check(f"{len(rows.queue)} jobs are left in the queue", holds=not rows.queue)
        self.check(f"{rows.standing()} must be 0", holds=not any(rows.standing().values()))
        self.check(f"{mended} jobs had to be mended", holds=not mended)
