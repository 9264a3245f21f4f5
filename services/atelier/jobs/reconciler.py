"""Keeps workers and ledger in agreement: starts what waits, restarts what was lost, ends what was cancelled."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

from atelier.jobs.job import ENDED, Job, State
from atelier.jobs.launcher import Launcher, Worker
from atelier.jobs.ledger import JobLedger

logger = logging.getLogger("atelier.jobs")

TICK_SECONDS = 0.5
PREEMPTED_EXIT_CODE = 143
"""A worker that was asked to stop and has written its checkpoint."""


@dataclass
class _Running:
    worker: Worker
    cancelled_since: float | None = None
    heartbeat_time: datetime | None = None
    heard: float = field(default_factory=time.monotonic)
    """When its last heartbeat was seen, by this process's own clock: neither its start, nor another machine's clock, nor a machine that
    slept counts as silence."""


@dataclass(kw_only=True)
class Reconciler:
    """The one that starts and restarts workers of `services`; a process that holds the folder's lock runs one."""

    ledger: JobLedger
    launcher: Launcher
    services: Sequence[str]
    max_workers: int = 1
    attempts: int = 3
    grace_seconds: float = 20.0
    silence_seconds: float = 120.0
    """A worker that lives but has not been heard of for so long hangs: it is ended, and the job begins again from its checkpoint."""
    _running: dict[str, _Running] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    def wake(self) -> None:
        """Looks again at once; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Works until the block ends; then workers are asked to write a checkpoint and stop, and after the grace are ended."""
        self._loop = asyncio.get_running_loop()
        # Whatever ran under an earlier process has ended with it (see LocalLauncher): those jobs begin again from their checkpoints.
        for job in await asyncio.to_thread(self.ledger.unended, self.services):
            await self._lost(job, "its control process was restarted", counts=False)
        task = asyncio.create_task(self._work())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._drain()

    async def _work(self) -> None:
        while True:
            try:
                await self._tick()
            except Exception:
                logger.exception("reconciling failed; trying again")
            try:
                async with asyncio.timeout(TICK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()

    async def _tick(self) -> None:
        jobs = await asyncio.to_thread(self.ledger.unended, self.services)
        known = {job.id: job for job in jobs}
        for identifier, running in list(self._running.items()):
            await self._look(identifier, running, known.get(identifier))
        for job in jobs:
            if job.state is State.PENDING and job.id not in self._running and len(self._running) < self.max_workers:
                logger.info("%s: starting a worker", job.name)
                self._running[job.id] = _Running(await asyncio.to_thread(self.launcher.start, job))

    async def _look(self, identifier: str, running: _Running, job: Job | None) -> None:
        code = running.worker.exit_code()
        if code is not None:
            del self._running[identifier]
            await asyncio.to_thread(running.worker.kill)  # whatever it left of its group
            if job is not None:
                await self._lost(job, _describe(code), counts=code != PREEMPTED_EXIT_CODE)
        elif job is None or job.state in ENDED:
            # It has told its end and is about to exit; one that does not is helped.
            running.cancelled_since = running.cancelled_since or time.monotonic()
        elif job.state is State.CANCELLING:
            running.cancelled_since = running.cancelled_since or time.monotonic()
        elif self._silent(running, job):
            logger.warning("%s: its worker has been silent for %.0f s", job.name, self.silence_seconds)
            del self._running[identifier]
            await asyncio.to_thread(running.worker.kill)
            await self._lost(job, f"the worker was not heard of for {self.silence_seconds:.0f} s", counts=True)
            return
        if code is None and running.cancelled_since and time.monotonic() - running.cancelled_since > self.grace_seconds:
            await asyncio.to_thread(running.worker.kill)

    def _silent(self, running: _Running, job: Job) -> bool:
        """Whether a worker hangs; one that has not claimed its job yet counts from its start."""
        if job.heartbeat_time != running.heartbeat_time:
            running.heartbeat_time, running.heard = job.heartbeat_time, time.monotonic()
        return time.monotonic() - running.heard > self.silence_seconds

    async def _lost(self, job: Job, reason: str, *, counts: bool) -> None:
        if job.state is State.PENDING and job.attempt == 0 and not counts:
            return
        if job.state is State.PENDING and counts:
            # The worker died before it could claim: that is an attempt too.
            await asyncio.to_thread(self._claim_and_requeue, job, reason)
            return
        after = await asyncio.to_thread(lambda: self.ledger.requeue(job.name, reason, counts=counts, budget=self.attempts))
        logger.info("%s: %s; now %s", job.name, reason, after.state)

    def _claim_and_requeue(self, job: Job, reason: str) -> None:
        self.ledger.claim(job.name)
        self.ledger.requeue(job.name, reason, counts=True, budget=self.attempts)

    async def _drain(self) -> None:
        for running in self._running.values():
            running.worker.stop()
        end = time.monotonic() + self.grace_seconds
        while time.monotonic() < end and any(r.worker.exit_code() is None for r in self._running.values()):
            await asyncio.sleep(0.05)
        for running in self._running.values():
            await asyncio.to_thread(running.worker.kill)
        for job in await asyncio.to_thread(self.ledger.unended, self.services):
            if job.id in self._running:
                await self._lost(job, "stopped together with its control process", counts=False)


def _describe(code: int) -> str:
    if code == PREEMPTED_EXIT_CODE:
        return "the worker made room"
    return f"the worker was ended by signal {-code}" if code < 0 else f"the worker ended with exit code {code} and no word"
