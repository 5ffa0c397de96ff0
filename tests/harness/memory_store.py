"""The stores of the simulation: `DispatchStore`, the runs and the term of the reaper over plain dictionaries.

Each call is one transaction: it happens at once, or, when the fault before the commit says so, not at all. Several
stores may stand on the same `Rows`, as replicas stand on one database; the rows are all that survives a crash.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from coordinator.core import attempt as machine
from coordinator.core.events import DependenciesEnded, JobEvent, Noted, Unschedulable
from coordinator.core.matching import Requirement
from coordinator.core.states import AttemptState, JobState, StaleToken
from coordinator.dispatch.port import (
    Answer,
    Beat,
    Bells,
    CancelOrder,
    Claimed,
    GivenUp,
    Hello,
    Missing,
    Observed,
    Opened,
    Orphan,
    Permit,
    Pulse,
    Report,
    Stray,
    Verdict,
    Wake,
    Want,
)
from coordinator.errors import IdentityTaken, LateHello
from tests.harness.memory_reliance import rely
from tests.harness.memory_rows import Rows, event_of
from tests.harness.memory_tables import AgentRow, AttemptRow, LeaseRow, PoolRow, QueueRow, SessionRow
from tests.harness.memory_timers import release_due
from tests.harness.memory_transactions import Transactions

T = TypeVar("T")


class MemoryDispatch:
    """`DispatchStore` over rows. `make_token` gives 16 bytes."""

    def __init__(
        self,
        rows: Rows,
        bells: Bells,
        make_token: Callable[[], bytes],
        transactions: Transactions | None = None,
        *,
        quarantine_after: int = 0,
    ) -> None:
        self.rows = rows
        self._quarantine_after = quarantine_after
        self._bells = bells
        self._make_token = make_token
        self._transactions = transactions or Transactions()

    async def _commit(self, body: Callable[[], tuple[T, Wake]]) -> T:
        result, wake = await self._transactions.run(body)
        self._bells.ring(wake)
        return result

    async def open_session(self, hello: Hello, session_id: str, replica: str) -> Opened:
        del replica
        rows = self.rows

        def body() -> tuple[Opened, Wake]:
            known = rows.agents.get(hello.name)
            older = rows.session_of(known.id) if known is not None else None
            if older is not None and rows.sessions[older].instance != hello.instance:
                raise IdentityTaken(f"an agent named `{hello.name}` is connected from elsewhere")
            newest = known.hello if known is not None and known.hello.instance == hello.instance else None
            if hello.number and newest is not None and hello.number <= newest.number:
                raise LateHello("a newer Hello of this agent was here before")
            rows.pools.setdefault(hello.pool, PoolRow())
            agent = known or AgentRow(rows.new_id(), hello)
            agent.hello, agent.leaving, agent.refusal = hello, hello.leaving, hello.refusal
            rows.agents[hello.name] = agent
            leases = [each for each in rows.leases.values() if each.agent_id == agent.id]
            held = {each.attempt_id: each.token for each in hello.held}
            resumed = {each.attempt_id for each in leases if held.get(each.attempt_id) == each.token}
            lost = {
                each.attempt_id: "its agent came back without it" for each in leases if each.attempt_id not in resumed
            }
            wake = rows.gone(lost)
            if older is not None:
                del rows.sessions[older]
            rows.sessions[session_id] = SessionRow(agent.id, hello.instance)
            for key in resumed:
                lease = rows.leases[key]
                lease.session_id, lease.number, lease.orphaned_at = session_id, 0, None
            over = "the attempt is over, or was given to somebody else"
            verdicts = tuple(
                Verdict(each.attempt_id, resume=each.attempt_id in resumed)
                if each.attempt_id in resumed
                else Verdict(each.attempt_id, resume=False, sentence=over)
                for each in hello.held
            )
            drained = agent.drained or bool(agent.quarantine)
            return Opened(session_id, agent.id, drained, verdicts), wake | Wake(agents=True)

        return await self._commit(body)

    async def close_session(self, session_id: str) -> None:
        rows = self.rows

        def body() -> tuple[None, Wake]:
            if any(lease.session_id == session_id for lease in rows.leases.values()):
                return None, Wake()
            return None, Wake(agents=rows.sessions.pop(session_id, None) is not None)

        await self._commit(body)

    async def heartbeat(self, beats: Sequence[Beat]) -> Pulse:
        rows = self.rows

        def body() -> tuple[Pulse, Wake]:
            alive = {beat.session_id for beat in beats if beat.session_id in rows.sessions}
            for session in alive:
                rows.sessions[session].counter += 1
            missing = tuple(
                Missing(lease.attempt_id, lease.run_id, beat.session_id)
                for beat in beats
                for lease in rows.leases.values()
                if lease.session_id == beat.session_id and lease.number <= beat.highest
                if lease.attempt_id not in beat.attempts
            )
            strays = tuple(
                Stray(attempt, beat.session_id)
                for beat in beats
                if beat.session_id in alive
                for attempt in sorted(beat.attempts)
                if attempt not in rows.attempts
                or rows.attempts[attempt].agent_id != rows.sessions[beat.session_id].agent_id
            )
            return Pulse(frozenset(alive), missing, strays), Wake()

        return await self._commit(body)

    async def settle_missing(self, missing: Sequence[Missing]) -> None:
        rows = self.rows

        def body() -> tuple[None, Wake]:
            still = [each for each in missing if each.attempt_id in rows.leases]
            mine = [each.attempt_id for each in still if rows.leases[each.attempt_id].session_id == each.session_id]
            return None, rows.gone(dict.fromkeys(mine, "its agent no longer knows it"))

        await self._commit(body)

    async def classes(self) -> Mapping[int, Requirement]:
        rows = self.rows

        def body() -> tuple[Mapping[int, Requirement], Wake]:
            queued = sorted({row.class_id for row in rows.queue.values()})
            return {key: rows.classes[key] for key in queued if not rows.pools[rows.classes[key].pool].paused}, Wake()

        return await self._commit(body)

    async def claim(self, classes: Sequence[int], wants: Sequence[Want]) -> Sequence[Claimed]:
        rows = self.rows

        def body() -> tuple[Sequence[Claimed], Wake]:
            free = {w.session_id: min(w.slots, rows.free_slots(w.session_id)) for w in wants}
            free = {key: slots for key, slots in free.items() if slots > 0}
            numbers = {want.session_id: want.next_number for want in wants}
            in_order = sorted(
                (-row.priority, row.vt, key) for key, row in rows.queue.items() if row.class_id in classes
            )
            claimed = []
            for _, _, key in in_order[: sum(free.values())]:
                session = max(free, key=lambda each: free[each])
                claimed.append(self._lease(key, rows.queue.pop(key), session, numbers[session]))
                free[session] -= 1
                numbers[session] += 1
            return claimed, Wake()

        return await self._commit(body)

    def _lease(self, key: int, place: QueueRow, session: str, number: int) -> Claimed:
        rows, job = self.rows, self.rows.jobs[key]
        assert rows.lease_of_job(key) is None, f"two live attempts of job {key}"
        rows.pools[job.pool].vt = max(rows.pools[job.pool].vt, place.vt)
        made = machine.Attempt(rows.new_id(), key, self._make_token())
        agent = rows.sessions[session].agent_id
        rows.attempts[made.id] = AttemptRow(made, job.run_id, agent, job.job.tries + 1)
        rows.leases[made.id] = LeaseRow(
            made.id, key, job.run_id, agent, session, made.token, number, job.job.at_most_once
        )
        return Claimed(
            session_id=session,
            number=number,
            attempt_id=made.id,
            token=made.token,
            job_id=key,
            run_id=job.run_id,
            class_id=job.class_id,
            attempt_try=job.job.tries + 1,
            spec=job.spec,
            needs=job.given,
            waited_s=rows.clock() - place.queued_at,
        )

    async def give_up(self, returned: Sequence[GivenUp]) -> frozenset[int]:
        rows = self.rows

        def body() -> tuple[frozenset[int], Wake]:
            found = {}
            for each in returned:
                lease, row = rows.leases.get(each.attempt_id), rows.attempts.get(each.attempt_id)
                mine = lease is not None and (lease.session_id, lease.token) == (each.session_id, each.token)
                if mine and row is not None and row.attempt.state is AttemptState.LEASED:
                    found[each.attempt_id] = each.sentence
            return frozenset(found), rows.gone(found)

        return await self._commit(body)

    async def report(self, reports: Sequence[Report]) -> Sequence[Answer]:
        rows = self.rows

        def body() -> tuple[Sequence[Answer], Wake]:
            now = {
                each.attempt_id: rows.attempts[each.attempt_id].attempt
                for each in reports
                if each.attempt_id in rows.attempts
            }
            moved, answers, told = [], [], {}
            for each in reports:
                known = now.get(each.attempt_id)
                if known is None:
                    answers.append(
                        Answer(each.id, each.attempt_id, abort=True, sentence="the coordinator does not know it")
                    )
                    continue
                try:
                    steps = machine.told(known, event_of(each))
                except StaleToken as error:
                    answers.append(Answer(each.id, each.attempt_id, abort=True, sentence=str(error)))
                    continue
                answers.append(Answer(each.id, each.attempt_id))
                for after in steps:
                    moved.append((now[each.attempt_id], after))
                    now[each.attempt_id] = after
                    told[each.attempt_id] = each
            return answers, rows.move(moved, told) | rely(rows, moved, told, self._quarantine_after)

        return await self._commit(body)

    async def runs_of(self, attempts: Sequence[int]) -> Mapping[int, int]:
        return {key: self.rows.attempts[key].run_id for key in attempts if key in self.rows.attempts}

    async def permit(self, attempt_id: int, token: bytes, nonce: str) -> Permit:
        rows = self.rows

        def body() -> tuple[Permit, Wake]:
            lease = rows.leases.get(attempt_id)
            refused = Permit(granted=False, sentence="another start of this deployment holds the permit")
            if lease is None or lease.token != token or not lease.at_most_once or lease.cancel:
                return refused, Wake()
            if rows.attempts[attempt_id].attempt.state is not AttemptState.RUNNING or lease.permit not in (None, nonce):
                return refused, Wake()
            if not lease.fencing:
                place = rows.runs[lease.run_id].repository, rows.jobs[lease.job_id].environment
                lease.fencing = rows.environments[place] = max(rows.environments.get(place, 0), rows.life + 1 << 40) + 1
            lease.permit = nonce
            return Permit(granted=True, fencing_token=lease.fencing), Wake()

        return await self._commit(body)

    async def cancels(self, sessions: Sequence[str]) -> Sequence[CancelOrder]:
        rows = self.rows

        def body() -> tuple[Sequence[CancelOrder], Wake]:
            return [
                CancelOrder(each.attempt_id, each.session_id, each.cancel == "kill", each.sentence)
                for each in rows.leases.values()
                if each.cancel and each.session_id is not None and each.session_id in sessions
            ], Wake()

        return await self._commit(body)

    async def drained(self, agents: Sequence[int]) -> frozenset[int]:
        rows, asked = self.rows, frozenset(agents)

        def body() -> tuple[frozenset[int], Wake]:
            drained = [row.id for row in rows.agents.values() if row.drained or row.quarantine]
            return frozenset(drained) & asked, Wake()

        return await self._commit(body)

    async def leaving(self, agent_id: int, refusal: str) -> None:
        rows = self.rows

        def body() -> tuple[None, Wake]:
            rows.agent(agent_id).leaving, rows.agent(agent_id).refusal = True, refusal
            return None, Wake(agents=True)

        await self._commit(body)

    async def observe(self) -> Observed:
        rows = self.rows

        def body() -> tuple[Observed, Wake]:
            orphans = tuple(Orphan(each.attempt_id) for each in rows.leases.values() if each.session_id is None)
            return Observed({key: row.counter for key, row in rows.sessions.items()}, orphans, str(rows.life)), Wake()

        return await self._commit(body)

    async def expire(self, counters: Mapping[str, int], term: str) -> Sequence[str]:
        rows = self.rows

        def body() -> tuple[Sequence[str], Wake]:
            if not rows.reaps(term):
                return (), Wake()
            ended = [
                key for key, seen in counters.items() if key in rows.sessions and rows.sessions[key].counter == seen
            ]
            leases = [each for each in rows.leases.values() if each.session_id in ended]
            others = {each.attempt_id: "its agent fell silent" for each in leases if each.permit is None}
            for each in leases:
                if each.permit is not None:
                    each.session_id, each.orphaned_at = None, rows.clock()
            wake = rows.gone(others)
            for key in ended:
                del rows.sessions[key]
            return ended, wake | Wake(agents=bool(ended))

        return await self._commit(body)

    async def expire_orphans(self, attempts: Sequence[int], term: str) -> Sequence[int]:
        rows = self.rows

        def body() -> tuple[Sequence[int], Wake]:
            found = [
                key
                for key in attempts
                if rows.reaps(term) and key in rows.leases and rows.leases[key].session_id is None
            ]
            return found, rows.gone(dict.fromkeys(found, "its agent fell silent; nobody knows how far it came"))

        return await self._commit(body)

    async def judge_schedulable(self, *, fail: bool) -> int:
        rows = self.rows

        def body() -> tuple[int, Wake]:
            events: dict[int, list[tuple[int, JobEvent]]] = defaultdict(list)
            for key, place in rows.queue.items():
                found = rows.reason(rows.classes[place.class_id])
                if rows.jobs[key].job.sentence != found.sentence:
                    event: JobEvent = (Unschedulable if found.hopeless and fail else Noted)(found.sentence)
                    events[rows.jobs[key].run_id].append((key, event))
            return sum(map(len, events.values())), rows.settle(events)

        return await self._commit(body)

    async def release_due(self) -> None:
        await self._commit(lambda: (None, release_due(self.rows)))

    async def mend(self, queue_timeout_s: float) -> int:
        rows = self.rows

        def body() -> tuple[int, Wake]:
            events: dict[int, list[tuple[int, JobEvent]]] = defaultdict(list)
            mended = 0
            for key, row in rows.jobs.items():
                place = rows.queue.get(key)
                if row.job.state is JobState.WAITING and not row.job.unfinished:
                    events[row.run_id].append((key, DependenciesEnded(0, 0)))
                    mended += 1
                elif place is not None and place.queued_at < rows.clock() - queue_timeout_s:
                    if not rows.reason(rows.classes[place.class_id]).unschedulable:
                        continue
                    sentence = f"no agent could take it within {queue_timeout_s / 3600:g} h"
                    events[row.run_id].append((key, Unschedulable(sentence)))
            return mended, rows.settle(events)

        return await self._commit(body)
