"""What is done to the fleet, one fault a function: it does it, holds it for a while, and takes it back."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.chaos.campaign.fleet import Fleet, Machine, Replica
from tests.chaos.clock import HOUR
from tests.chaos.disk import full
from tests.chaos.network import Machine as Place
from tests.chaos.power import power_off
from tests.chaos.proxy import DOWN, UP
from tests.e2e.scene import sandboxes

_AFTER = 2.5
"""Leases after a fault in which what it did may still come to light."""


@dataclass
class Hand:
    """Whose hand does it: its own chances, and how it names what it did."""

    fleet: Fleet
    random: random.Random
    back: float | None = None
    """Seconds until all agents were connected again, where that is counted from the midst of the fault."""

    @property
    def lease(self) -> float:
        return self.fleet.scale.lease_s

    def machine(self, fits: Callable[[Machine], object] = lambda _: True) -> Machine:
        return self.random.choice([each for each in self.fleet.machines if fits(each)])

    def replica(self) -> Replica:
        return self.random.choice(self.fleet.replicas)

    def moment(self) -> float:
        """Some seconds that hurt nobody's lease."""
        return self.random.uniform(0.1, self.lease / 3)

    def longer(self) -> float:
        """Some seconds more than a lease."""
        return self.lease * self.random.uniform(1.1, 1.4)

    def hold(self, seconds: float) -> None:
        """The fault lasts: time is what it is made of, and nothing is waited for."""
        time.sleep(seconds)

    @contextlib.contextmanager
    def away(self, machine: Machine) -> Iterator[None]:
        """What this machine loses meanwhile, or soon after, has its reason."""
        since = time.time()
        machine.away.append((since, float("inf")))
        try:
            yield
        finally:
            machine.away.remove((since, float("inf")))
            machine.away.append((since, time.time() + _AFTER * self.lease))


def replica_killed(hand: Hand) -> None:
    replica = hand.replica()
    hand.fleet.kill(replica)
    hand.back = hand.fleet.all_back()  # elsewhere: it is not there yet
    hand.hold(hand.moment())
    hand.fleet.start(replica)


def replica_restarted(hand: Hand) -> None:
    replica = hand.replica()
    replica.up = False
    replica.daemon.process.terminate()
    hand.back = hand.fleet.all_back()
    assert replica.daemon.process.wait(30) == 0, replica.daemon.said[-2000:]
    hand.fleet.start(replica)


def all_replicas_killed(hand: Hand) -> None:
    for each in hand.fleet.replicas:
        hand.fleet.kill(each)
    hand.hold(hand.lease * 1.5)
    for each in hand.fleet.replicas:
        hand.fleet.start(each)


def agent_killed(hand: Hand) -> None:
    """It comes back at once: its jobs go on."""
    machine = hand.machine()
    machine.kill()
    machine.start()


def agent_gone(hand: Hand) -> None:
    """It stays away for longer than a lease."""
    machine = hand.machine()
    with hand.away(machine):
        machine.kill()
        hand.hold(hand.longer())
        machine.start()


def agent_frozen(hand: Hand) -> None:
    machine = hand.machine()
    with hand.away(machine):
        machine.daemon.process.send_signal(signal.SIGSTOP)
        hand.hold(hand.longer())
        machine.daemon.process.send_signal(signal.SIGCONT)


def supervisor_killed(hand: Hand) -> None:
    machine = hand.machine()
    with hand.away(machine):
        for pid in machine.supervisors()[:1]:
            _kill(pid)


def sandbox_killed(hand: Hand) -> None:
    machine = hand.machine()
    with hand.away(machine):
        for pid in sandboxes(machine.daemon.folder)[:1]:
            _kill(pid)


def link_cut(hand: Hand) -> None:
    for each in hand.machine().links:
        each.cut()


def link_stalls(hand: Hand) -> None:
    """In one direction or both, for longer than a lease; the sockets stay open."""
    machine = hand.machine()
    ways = hand.random.choice([(UP,), (DOWN,), (UP, DOWN)])
    with hand.away(machine):
        for each in machine.links:
            each.stall(*ways)
        hand.hold(hand.longer())
        for each in machine.links:
            each.resume()


def link_is_slow(hand: Hand) -> None:
    machine = hand.machine()
    for each in machine.links:
        each.delay_s = 0.2
    hand.hold(hand.lease / 2)
    for each in machine.links:
        each.delay_s = 0.0


def one_way_is_gone(hand: Hand) -> None:
    """No agent reaches one of the replicas any more: those that were at it go elsewhere."""
    number = hand.random.randrange(len(hand.fleet.replicas))
    ways = [each.links[number] for each in hand.fleet.machines]
    for each in ways:
        each.stall()
    hand.hold(hand.longer())
    for each in ways:
        each.resume()


def replica_without_database(hand: Hand) -> None:
    replica = hand.replica()
    replica.database.stall()
    hand.hold(hand.lease * 1.5)
    replica.database.resume()
    replica.database.cut()


def answers_swallowed(hand: Hand) -> None:
    """What the replicas write arrives, the answers do not: nobody knows what was committed."""
    for each in hand.fleet.replicas:
        each.database.stall(DOWN)
    hand.hold(hand.random.uniform(0.05, 0.5))
    for each in hand.fleet.replicas:
        each.database.cut()
        each.database.resume()


def database_cut(hand: Hand) -> None:
    for each in hand.fleet.replicas:
        each.database.cut()


def database_shot(hand: Hand) -> None:
    hand.fleet.postgres.shoot()
    hand.fleet.postgres.start()


def database_away(hand: Hand) -> None:
    hand.fleet.postgres.shoot()
    hand.hold(hand.longer())
    hand.fleet.postgres.start()


def database_stalls(hand: Hand) -> None:
    for each in hand.fleet.replicas:
        each.database.stall()
    hand.hold(hand.longer())
    for each in hand.fleet.replicas:
        each.database.resume()


def database_clock_steps(hand: Hand) -> None:
    """An hour ahead or back, and right again."""
    clock = hand.fleet.postgres.clock
    clock.step(hand.random.choice((HOUR, -HOUR)))
    hand.hold(hand.longer())
    clock.step(0)


def network_cut(hand: Hand) -> None:
    """An agent's packets are lost in one direction or in both."""
    machine = hand.machine(lambda each: each.place)
    assert machine.place is not None
    fault = hand.random.choice((Place.cut, Place.deaf, Place.mute))
    with hand.away(machine):
        fault(machine.place)
        hand.hold(hand.longer())
        machine.place.heal()


def packets_lost(hand: Hand) -> None:
    """One in twenty, in each direction."""
    place = hand.machine(lambda each: each.place).place
    assert place is not None
    place.lose(0.05)
    hand.hold(hand.lease)
    place.heal()


def connections_forgotten(hand: Hand) -> None:
    """Half-open: what there is falls silent for ever, and new ones work."""
    place = hand.machine(lambda each: each.place).place
    assert place is not None
    place.forget_connections()
    hand.hold(hand.lease)
    place.heal()


def agent_disk_full(hand: Hand) -> None:
    machine = hand.machine(lambda each: each.disk)
    assert machine.disk is not None
    with hand.away(machine), full(machine.disk):
        hand.hold(hand.lease / 2)


def blob_disk_full(hand: Hand) -> None:
    with full(hand.fleet.blobs):
        hand.hold(hand.lease)


def engine_killed(hand: Hand) -> None:
    """Its containers run on, and end when it starts again."""
    with contextlib.ExitStack() as away:
        for each in hand.fleet.machines:
            away.enter_context(hand.away(each))
        hand.fleet.engine.kill()
        hand.hold(hand.moment())
        hand.fleet.engine.start()


def power_lost(hand: Hand) -> None:
    """Of one machine: all its processes are gone at once, and its disk is kept."""
    machine = hand.machine(lambda each: not each.disk)
    with hand.away(machine):
        machine.up = False
        power_off(machine.daemon)
        hand.hold(hand.moment())
        machine.start()


FAULTS: tuple[Callable[[Hand], None], ...] = (
    replica_killed, replica_restarted, all_replicas_killed, agent_killed, agent_gone, agent_frozen,
    supervisor_killed, sandbox_killed, link_cut, link_stalls, link_is_slow, one_way_is_gone, replica_without_database,
    answers_swallowed, database_cut, database_shot, database_away, database_stalls,
    database_clock_steps, network_cut, packets_lost, connections_forgotten,
    agent_disk_full, blob_disk_full, engine_killed, power_lost,
)  # fmt: skip


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.kill(pid, signal.SIGKILL)
