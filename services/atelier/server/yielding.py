"""What a pool does for jobs that find no device free: they wait, or it gives one of its own up."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from atelier.jobs.job import Job, State
from atelier.pools import Pool
from atelier.server.pool_states import PoolState

PATIENCE = timedelta(seconds=10)
"""The scheduler itself may find room within so long."""
NO_ROOM = re.compile(r"\d+/\d+ nodes are available|exceeded quota")
"""In what Kubernetes says of a pod that no node has room for; other things are waited for too, such as an image."""
SERVICES = ("trainer", "compiler")
"""Whose jobs need a device of a pool."""


def waiting(jobs: Sequence[Job], pool: str) -> list[Job]:
    """Those of a pool that wait for something, in the order of `jobs`: before they begin, or after a worker was evicted."""
    return [job for job in jobs if job.pool == pool and job.state is not State.CANCELLING and job.waits_for]


def given(pool: Pool, before: PoolState, jobs: Sequence[Job], *, target: int, now: datetime) -> tuple[str, int]:
    """The job that a pool gives a replica up for, empty for none, and the most replicas that it may have.

    `jobs`: all that are not over, oldest first; `target`: replicas that it has been asked for. One job at a time, until it is over: the
    next gets the device that it leaves. The pool keeps one less than it has, and never less than its minimum.
    """
    if pool.when_full != "yield":
        return "", pool.max_replicas
    if before.gives_to in _names(jobs):
        return before.gives_to, max(pool.min_replicas, min(pool.max_replicas, before.most))
    found = next((job for job in waiting(jobs, pool.name) if NO_ROOM.search(job.waits_for) and now - job.create_time > PATIENCE), None)
    if found is None:
        return "", pool.max_replicas
    return found.name, max(pool.min_replicas, min(pool.max_replicas, target or pool.max_replicas) - 1)


def _names(jobs: Sequence[Job]) -> Collection[str]:
    return {job.name for job in jobs}
