"""Dispatch on PostgreSQL: the transactions that `coordinator.dispatch.port.DispatchStore` promises."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import asyncpg

from coordinator.core.events import DependenciesEnded, JobEvent, Noted, Unschedulable
from coordinator.core.matching import Ability, Fleet, Offer, Reason, Requirement, reason
from coordinator.core.quarantine import Told
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
from coordinator.errors import IdentityTaken, LateHello, StoreDown
from coordinator.store import attempts
from coordinator.store.admission import admit_group
from coordinator.store.database import Connection, Database
from coordinator.store.settle import lock_runs, settle
from coordinator.store.sql import statements
from coordinator.store.timers import by_run, expire_door, release

SQL = statements("dispatch")
SETTLE = statements("settle")
GROUPS = statements("groups")
SETTLE = statements("settle")


class PostgresDispatch:
    """`DispatchStore` over a database. `make_token` gives 16 random bytes; an agent that the machinery has failed on
    `quarantine_after` times in a row gets no more jobs (0: it does).
    """

    def __init__(
        self, database: Database, bells: Bells, make_token: Callable[[], bytes], *, quarantine_after: int
    ) -> None:
        self._database = database
        self._quarantine_after = quarantine_after
        self._bells = bells
        self._make_token = make_token

    async def open_session(self, hello: Hello, session_id: str, replica: str) -> Opened:
        """Opens a session, fences the older one of the same instance and judges what the agent holds."""
        async with self._database.transaction() as db:
            opened, wake = await _open_session(db, hello, session_id, replica)
        self._bells.ring(wake | Wake(agents=True))
        return opened

    async def close_session(self, session_id: str) -> None:
        """Ends a session whose agent left with nothing in its hands."""
        async with self._database.transaction() as db:
            await db.execute(SQL.lock_session, session_id)
            closed = await db.fetchval(SQL.delete_idle_session, session_id)
        if closed is not None:
            self._bells.ring(Wake(agents=True))
            await self._seen([closed])

    async def heartbeat(self, beats: Sequence[Beat]) -> Pulse:
        """Raises the counters of all sessions in one statement and says what is missing."""
        named = [(beat.session_id, attempt) for beat in beats for attempt in beat.attempts]
        async with self._database.connection() as db:
            alive = await db.fetch(SQL.beat, [beat.session_id for beat in beats])
            missing = await db.fetch(
                SQL.missing,
                [beat.session_id for beat in beats],
                [beat.highest for beat in beats],
                [session for session, _ in named],
                [attempt for _, attempt in named],
            )
        return Pulse(
            frozenset(str(row["id"]) for row in alive),
            tuple(
                Missing(row["attempt_id"], row["run_id"], str(row["session_id"])) for row in missing if not row["stray"]
            ),
            tuple(Stray(row["attempt_id"], str(row["session_id"])) for row in missing if row["stray"]),
        )

    async def settle_missing(self, missing: Sequence[Missing]) -> None:
        """Gives up what its agent no longer knows."""
        held = {each.attempt_id: each.session_id for each in missing}
        async with self._database.transaction() as db:
            wake = await attempts.gone(db, held, "its agent no longer knows it")
        self._bells.ring(wake)

    async def classes(self) -> Mapping[int, Requirement]:
        """Classes with something queued in a pool that is not paused."""
        async with self._database.connection() as db:
            rows = await db.fetch(SQL.classes)
        return {row["id"]: _requirement_of(row) for row in rows if not row["paused"]}

    async def claim(self, classes: Sequence[int], wants: Sequence[Want]) -> Sequence[Claimed]:
        """Takes queued jobs for free slots."""
        async with self._database.transaction() as db:
            return await attempts.claim(db, classes, wants, self._make_token)

    async def give_up(self, returned: Sequence[GivenUp]) -> frozenset[int]:
        """Returns assignments that never began."""
        async with self._database.transaction() as db:
            found, wake = await attempts.give_up(db, returned)
        self._bells.ring(wake)
        return found

    async def report(self, reports: Sequence[Report]) -> Sequence[Answer]:
        """Records reports and what follows from them."""
        async with self._database.transaction() as db:
            recorded = await attempts.report(db, reports)
        self._bells.ring(recorded.wake)
        if recorded.told:
            await self._rely(recorded.told)
        return recorded.answers

    async def runs_of(self, attempts: Sequence[int]) -> Mapping[int, int]:
        """The run of each attempt."""
        async with self._database.connection() as db:
            return {row["id"]: row["run_id"] for row in await db.fetch(SQL.runs_of_attempts, list(attempts))}

    async def permit(self, attempt_id: int, token: bytes, nonce: str) -> Permit:
        """Grants the start permit to one nonce for ever."""
        async with self._database.transaction() as db:
            return await attempts.permit(db, attempt_id, token, nonce)

    async def cancels(self, sessions: Sequence[str]) -> Sequence[CancelOrder]:
        """What people want ended of these sessions' attempts."""
        async with self._database.connection() as db:
            rows = await db.fetch(SQL.cancels, list(sessions))
        return [
            CancelOrder(row["attempt_id"], str(row["session_id"]), row["cancel"] == "kill", row["cancel_sentence"])
            for row in rows
        ]

    async def drained(self, agents: Sequence[int]) -> frozenset[int]:
        """Which of these a person has drained, or are quarantined."""
        async with self._database.connection() as db:
            return frozenset(row["id"] for row in await db.fetch(SQL.drained, list(agents)))

    async def leaving(self, agent_id: int, refusal: str) -> None:
        """The agent takes nothing new, by its own decision."""
        async with self._database.connection() as db:
            await db.execute(SQL.leaving, agent_id, refusal)
        self._bells.ring(Wake(agents=True))

    async def observe(self) -> Observed:
        """Counters of sessions, and attempts out of contact."""
        async with self._database.connection() as db:
            counters = await db.fetch(SQL.counters)
            orphans = await db.fetch(SQL.orphans)
            server = await db.fetchval(SQL.server)
        return Observed(
            {str(row["id"]): row["counter"] for row in counters},
            tuple(Orphan(row["attempt_id"]) for row in orphans),
            server,
        )

    async def expire(self, counters: Mapping[str, int], term: str) -> Sequence[str]:
        """Ends sessions that stood still, and settles what they held."""
        async with self._database.transaction() as db:
            rows = await db.fetch(SQL.expire, list(counters), list(counters.values()), term)
            if not rows:
                return ()
            sessions = [row["id"] for row in rows]
            leases = await db.fetch(SQL.leases_of_sessions, sessions)
            permitted = [row["attempt_id"] for row in leases if row["permitted"]]
            others = {row["attempt_id"]: str(row["session_id"]) for row in leases if not row["permitted"]}
            # Runs before leases, as everywhere.
            wake = await attempts.gone(db, others, "its agent fell silent")
            await db.execute(SQL.orphan_leases, permitted)
            await db.execute(SQL.delete_sessions, sessions)
        self._bells.ring(wake | Wake(agents=True))
        await self._seen([row["agent_id"] for row in rows])
        return [str(session) for session in sessions]

    async def expire_orphans(self, orphans: Sequence[int], term: str) -> Sequence[int]:
        """Settles permitted attempts that nobody resumed."""
        async with self._database.transaction() as db:
            rows = await db.fetch(SQL.still_orphans, list(orphans), term)
            found = dict.fromkeys(row["attempt_id"] for row in rows)
            wake = await attempts.gone(db, found, "its agent fell silent; nobody knows how far it came")
        self._bells.ring(wake)
        return list(found)

    async def judge_schedulable(self, *, fail: bool) -> int:
        """Writes on queued jobs why no connected agent can take them, or fails them at once."""
        async with self._database.connection() as db:
            reasons = await _reasons(db)
            columns = list(reasons), [each.sentence for each in reasons.values()]
            rows = await db.fetch(SQL.queued_with_other_reason, *columns) if reasons else []
        other: dict[int, dict[int, int]] = defaultdict(dict)
        for row in rows:
            other[row["cls"]][row["id"]] = row["run_id"]
        changed = 0
        for class_id, jobs in other.items():
            found = reasons[class_id]
            event: JobEvent = (Unschedulable if found.hopeless and fail else Noted)(found.sentence)
            changed += await self._still_queued(jobs, event)
        return changed

    async def release_due(self) -> None:
        """Queues what has paused long enough, ends approvals that nobody gave, lets in whoever waits for a group."""
        async with self._database.connection() as db:
            due = await db.fetch(SETTLE.due)
            expired = await db.fetch(SETTLE.expired_doors)
            crowded = await db.fetch(GROUPS.crowded)
        for run_id, jobs in by_run(due).items():
            async with self._database.transaction() as db:
                wake = await release(db, run_id, jobs)
            self._bells.ring(wake)
        for row in expired:
            async with self._database.transaction() as db:
                wake = await expire_door(db, row["run_id"], row["index"])
            self._bells.ring(wake)
        for row in crowded:
            async with self._database.transaction() as db:
                wake = await admit_group(db, row["group_id"])
            self._bells.ring(wake)

    async def mend(self, queue_timeout_s: float) -> int:
        """Queues what waits for nothing, ends what no agent could take for too long, forgets old requests."""
        async with self._database.connection() as db:
            await db.execute(SQL.forget_requests)
            waiting = await db.fetch(SQL.waiting_for_nothing)
            hopeless = [key for key, found in (await _reasons(db)).items() if found.unschedulable]
            too_long = await db.fetch(SQL.queued_too_long, queue_timeout_s, hopeless)
        if waiting:
            async with self._database.transaction() as db:
                runs = await lock_runs(db, [row["run_id"] for row in waiting])
                still = {row["id"] for row in await db.fetch(SQL.waiting_for_nothing)}
                events: dict[int, list[tuple[int, JobEvent]]] = defaultdict(list)
                for row in waiting:
                    if row["id"] in still:
                        events[row["run_id"]].append((row["id"], DependenciesEnded(0, 0)))
                wake = await settle(db, runs, events)
            self._bells.ring(wake)
        if too_long:
            hours = queue_timeout_s / 3600
            sentence = f"no agent could take it within {hours:g} h"
            await self._still_queued({row["job_id"]: row["run_id"] for row in too_long}, Unschedulable(sentence))
        return len(waiting)

    async def _rely(self, told: Mapping[int, Sequence[Told]]) -> None:
        """Not with the reports: should it be lost, an agent has erred once less, and nothing else is wrong."""
        with contextlib.suppress(StoreDown):
            async with self._database.transaction() as db:
                wake = await attempts.rely(db, told, self._quarantine_after)
            self._bells.ring(wake)

    async def _seen(self, agents: Sequence[int]) -> None:
        """Notes when agents were last there. Only people read it: should it be lost, nothing is wrong."""
        with contextlib.suppress(StoreDown):
            async with self._database.connection() as db:
                await db.execute(SQL.seen, list(agents))

    async def _still_queued(self, jobs: Mapping[int, int], event: JobEvent) -> int:
        """Applies an event to jobs that nobody has claimed meanwhile. `jobs`: id -> run."""
        async with self._database.transaction() as db:
            runs = await lock_runs(db, jobs.values())
            held = [row["job_id"] for row in await db.fetch(SETTLE.hold_queued, sorted(jobs))]
            events: dict[int, list[tuple[int, JobEvent]]] = defaultdict(list)
            for job in held:
                events[jobs[job]].append((job, event))
            wake = await settle(db, runs, events)
        self._bells.ring(wake)
        return len(held)


async def _reasons(db: Connection) -> dict[int, Reason]:
    """Of every class that has something queued."""
    offers: dict[str, dict[str, Offer]] = {"working": {}, "drained": {}, "leaving": {}, "quarantined": {}}
    for row in await db.fetch(SQL.offers):
        how = next((how for how in ("quarantined", "leaving", "drained") if row[how]), "working")
        offers[how][row["name"]] = _offer_of(row)
    fleet = Fleet(**offers)
    return {row["id"]: reason(_requirement_of(row), fleet, paused=row["paused"]) for row in await db.fetch(SQL.classes)}


async def _open_session(db: Connection, hello: Hello, session_id: str, replica: str) -> tuple[Opened, Wake]:
    await db.execute(SQL.make_pool, hello.pool)
    facts = (
        hello.pool,
        hello.instance,
        hello.version,
        json.dumps(dict(hello.labels)),
        hello.slots,
        json.dumps([_ability_json(each) for each in hello.abilities]),
        hello.leaving,
        hello.slot_cpu,
        hello.slot_memory,
        hello.refusal,
    )
    agent = await db.fetchrow(SQL.lock_agent, hello.name, *facts)
    older = await db.fetchrow(SQL.session_of_agent, agent["id"])
    if older is not None and older["instance"] != hello.instance:
        raise IdentityTaken(
            f"an agent named `{hello.name}` is connected from elsewhere: give this one another name, or stop that one"
        )
    if hello.number and agent["instance"] == hello.instance and hello.number <= agent["hello"]:
        raise LateHello(
            "a newer Hello of this agent was here before; where its data directory was restored from a copy, remove the"
            " file `instance` in it"
        )
    await db.execute(SQL.write_agent, agent["id"], *facts, hello.number)
    leases = {row["attempt_id"]: row for row in await db.fetch(SQL.leases_of_agent, agent["id"])}
    held = {each.attempt_id: each.token for each in hello.held}
    resumed = [key for key, row in leases.items() if held.get(key) == row["token"]]
    lost = {
        key: None if row["session_id"] is None else str(row["session_id"])
        for key, row in leases.items()
        if key not in resumed
    }
    # Runs are locked before leases, as everywhere: a cancel of one of these runs may be under way.
    wake = await attempts.gone(db, lost, "its agent came back without it")
    if older is not None:
        await db.execute(SQL.delete_session, older["id"])
    await db.execute(SQL.insert_session, session_id, agent["id"], hello.instance, replica)
    await db.execute(SQL.resume_leases, resumed, session_id)
    verdicts = tuple(
        Verdict(each.attempt_id, resume=True)
        if each.attempt_id in resumed
        else Verdict(each.attempt_id, resume=False, sentence="the attempt is over, or was given to somebody else")
        for each in hello.held
    )
    return Opened(session_id, agent["id"], agent["drained"], verdicts), wake


def _requirement_of(row: asyncpg.Record) -> Requirement:
    labels = tuple(sorted(json.loads(row["requires"]).items()))
    return Requirement(
        row["pool"],
        labels,
        row["sandbox"],
        row["network"],
        row["trusted"],
        cpu=row["cpu"],
        memory=row["memory"],
        hard_limits=row["hard_limits"],
    )


def _offer_of(row: asyncpg.Record) -> Offer:
    abilities = tuple(map(_ability_of, json.loads(row["sandboxes"])))
    labels = tuple(sorted(json.loads(row["labels"]).items()))
    return Offer(row["pool"], labels, abilities, row["slot_cpu"], row["slot_memory"])


def _ability_of(found: Mapping[str, Any]) -> Ability:
    return Ability(found["kind"], frozenset(found["networks"]), found["why_not"], hard_limits=found["hard_limits"])


def _ability_json(ability: Ability) -> dict[str, object]:
    return {
        "kind": ability.kind,
        "networks": sorted(ability.networks),
        "hard_limits": ability.hard_limits,
        "why_not": ability.why_not,
    }
