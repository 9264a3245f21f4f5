"""A lease is held by one at a time, and work under it stops before another can begin."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from atelier.lease import Lease, LeaseRow, lead
from atelier.ledger import Database


def lease(database: Database, *, term_seconds: float = 15) -> Lease:
    return Lease(database=database, name="workers", term_seconds=term_seconds)


@dataclass
class Work:
    """Runs until it is stopped, and takes `tidy_seconds` to stop."""

    lease: Lease
    tidy_seconds: float = 0
    began: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    held_when_tidy: bool = False

    async def __call__(self) -> None:
        self.began.append(time.monotonic())
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(self.tidy_seconds)
            self.held_when_tidy = self.lease.held
            self.ended.append(time.monotonic())


async def until(seen: list[float], count: int = 1, *, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while len(seen) < count:
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def leading(work: Work) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(lead(work.lease, work))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_of_many_that_ask_at_once_one_gets_it(database: Database) -> None:
    leases = [lease(database) for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        got = list(pool.map(lambda one: one.acquire(), leases))
    assert got.count(True) == 1
    assert [one.held for one in leases] == got


def test_the_holder_renews_it_and_gives_it_back(database: Database) -> None:
    one, other = lease(database), lease(database)
    assert one.acquire() and not other.acquire() and one.acquire()
    other.release()  # is not its to give
    assert not other.acquire()
    one.release()
    assert not one.held and other.acquire()


def test_other_names_are_other_leases(database: Database) -> None:
    assert lease(database).acquire() and Lease(database=database, name="serve").acquire()


def test_of_a_holder_that_is_gone_it_is_had_after_the_term_and_not_before(database: Database) -> None:
    began = time.monotonic()
    one, other = lease(database, term_seconds=1.5), lease(database, term_seconds=1.5)
    assert one.acquire()
    while not other.acquire():
        assert time.monotonic() - began < 5
        time.sleep(0.02)
    assert time.monotonic() - began >= 1.5
    assert not one.held and not one.acquire()


def test_the_holder_believes_it_for_less_than_its_term(database: Database) -> None:
    one = lease(database, term_seconds=1.5)
    assert one.acquire() and one.held
    time.sleep(1.05)
    assert not one.held and one.left_seconds == 0


async def test_work_is_done_by_one_and_by_the_next_when_that_ends(database: Database) -> None:
    first, second = Work(lease(database, term_seconds=2)), Work(lease(database, term_seconds=2))
    async with leading(first) as task:
        await until(first.began)
        async with leading(second):
            await asyncio.sleep(3)  # longer than a term: it is renewed
            assert not second.began and not first.ended
            task.cancel()
            await until(second.began, seconds=1)  # given back, not run out
    assert first.held_when_tidy and first.ended[0] <= second.began[0]


async def test_a_lease_that_another_has_taken_ends_the_work_and_is_regained_later(database: Database) -> None:
    work = Work(lease(database, term_seconds=1.5))
    async with leading(work):
        await until(work.began)
        with database.transaction() as session:
            row = session.get(LeaseRow, "workers")
            assert row is not None
            row.holder = "another"
        await until(work.ended)
        await until(work.began, 2)


async def test_work_that_tidies_up_is_alone_until_it_has(database: Database) -> None:
    first, second = Work(lease(database, term_seconds=1), tidy_seconds=2), Work(lease(database, term_seconds=1))
    async with leading(first) as task:
        await until(first.began)
        async with leading(second):
            task.cancel()
            await until(second.began)
    assert first.held_when_tidy and first.ended[0] <= second.began[0]


@dataclass(kw_only=True)
class Hanging(Lease):
    """Its database stops answering after the first call, until `answers`."""

    calls: int = 0
    answers: threading.Event = field(default_factory=threading.Event)

    def acquire(self) -> bool:
        self.calls += 1
        if self.calls > 1:
            self.answers.wait(10)
            return False
        return super().acquire()


async def test_work_stops_within_the_term_when_the_database_hangs(database: Database) -> None:
    hanging = Hanging(database=database, name="workers", term_seconds=1.5)
    work = Work(hanging)
    async with leading(work):
        try:
            await until(work.ended)
            assert work.ended[0] - work.began[0] < 1.5
        finally:
            hanging.answers.set()


async def test_what_work_raises_is_raised_and_gives_the_lease_back(database: Database) -> None:
    async def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await lead(lease(database), fails)
    assert lease(database).acquire()
