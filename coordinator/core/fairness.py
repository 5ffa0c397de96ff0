"""Virtual time: how projects share a pool. Plain start-time fair queueing, one number a job."""

from __future__ import annotations


def queue_times(pool_vt: float, project_vt: float, weight: float, count: int) -> tuple[float, ...]:
    """The virtual times of `count` jobs that a project queues now.

    A project that was idle begins at the pool's present and cannot claim for the time it was away; one that has
    much queued goes on behind its own last job. The next `project_vt` is the last of them.
    """
    start = max(pool_vt, project_vt)
    return tuple(start + (index + 1) / weight for index in range(count))
