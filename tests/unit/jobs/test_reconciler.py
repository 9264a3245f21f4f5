"""The reconciler keeps as many workers as it may, ends one that hangs, and is no longer alone without its lease."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from atelier.jobs.job import Job, NewJob, State
from atelier.jobs.launcher import NotNow, Sight, describe
from atelier.jobs.ledger import JobLedger
from atelier.jobs.messages import event_to_message
from atelier.jobs.reconciler import Reconciler
from atelier.jobs.tables import JobRow
from atelier.lease import Lease, LeaseRow
from atelier.ledger import Database, now


@pytest.fixture
def ledger(database: Database) -> JobLedger:
    return JobLedger(database)


def new() -> NewJob:
    return NewJob(service="trainer", method="Train", request_id="", body_sha256="a" * 64, spec=b"spec")


@dataclass
class FakeWorker:
    """Runs until it is killed, or until it says so itself."""

    code: int | None = None

    def look(self) -> Sight:
        return Sight(end=describe(self.code) if self.code is not None else None)

    def log_tail(self) -> Sequence[str]:
        return ()

    def stop(self) -> None:
        self.code = 143

    def kill(self) -> None:
        self.code = self.code if self.code is not None else -9


@dataclass
class FakeLauncher:
    """`work` plays the worker, in a task of its own."""

    work: Callable[[Job, int, FakeWorker], Any]
    workers: list[FakeWorker] = field(default_factory=list)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    refuses: set[str] = field(default_factory=set)
    """Jobs whose workers cannot be started."""
    tries: int = 0
    outlives = False

    def watching(self, services: Sequence[str]) -> AbstractContextManager[None]:
        return nullcontext()

    def adopt(self, jobs: Sequence[Job]) -> Mapping[str, FakeWorker]:
        return {}

    def start(self, job: Job) -> FakeWorker:
        self.tries += 1
        if job.name in self.refuses:
            raise NotNow("there is no room")
        worker = FakeWorker()
        self.workers.append(worker)
        asyncio.run_coroutine_threadsafe(self.work(job, len(self.workers), worker), self.loop)
        return worker


async def until_ended(ledger: JobLedger, name: str) -> Job:
    end = time.monotonic() + 10
    while (job := ledger.get(name)).end_time is None:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    return job


async def test_a_worker_that_lives_but_is_silent_is_ended_and_the_job_begins_again(ledger: JobLedger) -> None:
    name = ledger.submit(new()).name

    async def work(job: Job, number: int, worker: FakeWorker) -> None:
        attempt = ledger.claim(name).attempt
        if number == 2:
            ledger.complete(name, attempt, state=State.SUCCEEDED)
            worker.code = 0

    launcher = FakeLauncher(work)
    reconciler = Reconciler(ledger=ledger, launcher=launcher, services=["trainer"], silence_seconds=0.5, grace_seconds=1)
    async with reconciler.running():
        job = await until_ended(ledger, name)
    assert (job.state, len(launcher.workers), launcher.workers[0].code) == (State.SUCCEEDED, 2, -9)
    events = [event_to_message(event) for event in ledger.events(name, after_sequence=0)[0]]
    assert any("not heard of" in event.attempt.reason for event in events)


async def test_silence_counts_from_the_reconcilers_own_start(ledger: JobLedger, database: Database) -> None:
    name = ledger.submit(new()).name
    ledger.claim(name)
    with database.transaction() as session:  # the machine was off for a day
        row = session.get(JobRow, name.removeprefix("jobs/"))
        assert row is not None
        row.heartbeat_time = now() - timedelta(days=1)

    async def work(job: Job, number: int, worker: FakeWorker) -> None:
        await asyncio.sleep(0.6)
        attempt = ledger.claim(name).attempt
        for _ in range(8):
            await asyncio.sleep(0.3)
            ledger.heartbeat(name, attempt)
        ledger.complete(name, attempt, state=State.SUCCEEDED)
        worker.code = 0

    launcher = FakeLauncher(work)
    reconciler = Reconciler(ledger=ledger, launcher=launcher, services=["trainer"], silence_seconds=2.0, grace_seconds=1)
    async with reconciler.running():
        job = await until_ended(ledger, name)
    assert (job.state, len(launcher.workers), job.failures) == (State.SUCCEEDED, 1, 0)


@pytest.mark.parametrize(("max_workers", "at_once"), [(1, 1), (2, 2), (0, 3)])
async def test_so_many_jobs_run_at_once_as_the_launcher_has_room_for(ledger: JobLedger, max_workers: int, at_once: int) -> None:
    names = [ledger.submit(new()).name for _ in range(3)]
    running, most = 0, 0

    async def work(job: Job, number: int, worker: FakeWorker) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        attempt = ledger.claim(job.name).attempt
        await asyncio.sleep(0.8)
        ledger.complete(job.name, attempt, state=State.SUCCEEDED)
        running -= 1
        worker.code = 0

    reconciler = Reconciler(ledger=ledger, launcher=FakeLauncher(work), services=["trainer"], max_workers=max_workers)
    async with reconciler.running():
        for name in names:
            await until_ended(ledger, name)
    assert most == at_once


async def test_a_job_whose_worker_cannot_be_started_says_why_and_holds_up_no_other(ledger: JobLedger) -> None:
    refused, name = ledger.submit(new()).name, ledger.submit(new()).name

    async def work(job: Job, number: int, worker: FakeWorker) -> None:
        ledger.complete(job.name, ledger.claim(job.name).attempt, state=State.SUCCEEDED)
        worker.code = 0

    launcher = FakeLauncher(work, refuses={refused})
    async with Reconciler(ledger=ledger, launcher=launcher, services=["trainer"]).running():
        await until_ended(ledger, name)
        await asyncio.sleep(2)
        assert ledger.get(refused).waits_for == "there is no room"
        assert launcher.tries <= 5  # ever more seldom
        launcher.refuses.clear()
        await until_ended(ledger, refused)
    lines = [event_to_message(event).log.message for event in ledger.events(refused, after_sequence=0)[0]]
    assert lines.count("there is no room") == 1


async def test_without_the_lease_workers_of_this_machine_end_and_their_jobs_are_left_to_the_next(
    ledger: JobLedger, database: Database
) -> None:
    name = ledger.submit(new()).name

    async def work(job: Job, number: int, worker: FakeWorker) -> None:
        ledger.claim(job.name)

    launcher = FakeLauncher(work)
    lease = Lease(database=database, name="workers", term_seconds=2)
    async with Reconciler(ledger=ledger, launcher=launcher, services=["trainer"], lease=lease).running():
        while ledger.get(name).state is not State.RUNNING:
            await asyncio.sleep(0.05)
        with database.transaction() as session:
            row = session.get(LeaseRow, "workers")
            assert row is not None
            row.holder, row.until = "another", now() + timedelta(seconds=60)
        while launcher.workers[0].code is None:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        assert ledger.get(name).state is State.RUNNING and len(launcher.workers) == 1
