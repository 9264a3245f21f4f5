"""Which job a pool gives a replica up for, and what is left of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from fake_pools import job

from atelier.jobs.job import State
from atelier.ledger import now
from atelier.pools import Pool
from atelier.server.pool_states import PoolState
from atelier.server.yielding import given, waiting

NO_ROOM = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
POOL = Pool(name="fast", min_replicas=0, max_replicas=4, when_full="yield")


def gives(jobs: list[Any], *, pool: Pool = POOL, before: PoolState | None = None, target: int = 4) -> tuple[str, int]:
    return given(pool, before or PoolState(), jobs, target=target, now=now())


def waits(**fields: Any) -> Any:
    return job(**{"pool": "fast", "waits_for": NO_ROOM, **fields})


@pytest.mark.parametrize(
    ("why", "jobs"),
    [
        ("nobody waits", lambda: []),
        ("it has begun", lambda: [waits(state=State.RUNNING, waits_for="")]),
        ("of another pool", lambda: [waits(pool="other")]),
        ("for an image", lambda: [waits(waits_for="ImagePullBackOff: no such image")]),
        ("the scheduler has just seen it", lambda: [waits(create_time=now() - timedelta(seconds=2))]),
    ],
)
def test_nothing_is_given_up_for_less_than_a_job_without_room(why: str, jobs: Callable[[], list[Any]]) -> None:
    assert gives(jobs()) == ("", 4), why


@pytest.mark.parametrize(
    ("why", "pool", "target", "most"),
    [
        ("at its maximum", POOL, 4, 3),
        ("below it, where there are no more devices", POOL, 2, 1),
        ("its last", POOL, 1, 0),
        ("of none it has nothing to give", POOL, 0, 3),
        ("never under its minimum", POOL.model_copy(update={"min_replicas": 2}), 2, 2),
    ],
)
def test_a_pool_keeps_one_less_than_it_has(why: str, pool: Pool, target: int, most: int) -> None:
    assert gives([waits()], pool=pool, target=target) == ("jobs/j1", most), why


def test_what_was_given_stays_so_while_the_job_runs_however_many_are_asked_for() -> None:
    before = PoolState(gives_to="jobs/j1", most=1)
    assert gives([waits(state=State.RUNNING, waits_for="")], before=before, target=1) == ("jobs/j1", 1)
    smaller = POOL.model_copy(update={"max_replicas": 2, "min_replicas": 2})
    assert gives([waits()], pool=smaller, before=before) == ("jobs/j1", 2), "the pool's values were changed meanwhile"


def test_quota_is_room_too() -> None:
    assert gives([waits(waits_for="exceeded quota: gpus, requested: 1")])[0] == "jobs/j1"


def test_all_that_wait_are_listed_whatever_for() -> None:
    found = [waits(id="j1"), waits(id="j2", waits_for="ImagePullBackOff"), waits(id="j3", waits_for=""), waits(id="j4", pool="other")]
    assert [one.id for one in waiting(found, "fast")] == ["j1", "j2"]
