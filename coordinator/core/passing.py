"""What a job that has ended is to those that depend on it."""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.core.job import Job


def passed_on(source: Job, dependent: Job) -> tuple[int, str, bool]:
    """What an ended job is to one that depends on it: how many failed (0 or more), the first of them, and whether
    `failure()` is true. What an expander has waited for is what its cells wait for."""
    if source.rules.expands and dependent.rules.expander == source.key:
        return source.failed, source.decider, source.upstream_failed
    failed = source.counts_as_failed
    return int(failed), source.key if failed else "", source.fails_below


def seen_of(job: Job, dependencies: Iterable[Job]) -> tuple[int, str, bool]:
    """What a job has seen of those of its dependencies that are over: as `passed_on`, of all of them."""
    told = [passed_on(each, job) for each in dependencies if each.over]
    deciders = [decider for _, decider, _ in told if decider]
    return sum(failed for failed, _, _ in told), deciders[0] if deciders else "", any(each for _, _, each in told)
