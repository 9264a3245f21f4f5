"""The reconciler notices a worker that hangs, and counts its silence by its own clock."""

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
from atelier.jobs.launcher import Sight, describe
from atelier.jobs.ledger import JobLedger
from atelier.jobs.messages import event_to_message
from atelier.jobs.reconciler import Reconciler
from atelier.jobs.tables import JobRow
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
    outlives = False

    def watching(self, services: Sequence[str]) -> AbstractContextManager[None]:
        return nullcontext()

    def adopt(self, jobs: Sequence[Job]) -> Mapping[str, FakeWorker]:
        return {}

    def start(self, job: Job) -> FakeWorker:
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
