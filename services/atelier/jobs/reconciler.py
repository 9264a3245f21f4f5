"""Keeps workers and ledger in agreement: starts what waits, restarts what was lost, ends what was cancelled."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime

from google.rpc import code_pb2, status_pb2

from atelier.errors import AtelierError, Status
from atelier.jobs.events import log_event
from atelier.jobs.job import Job, State
from atelier.jobs.launcher import End, Launcher, NotNow, Sight, Worker
from atelier.jobs.ledger import JobLedger
from atelier.lease import Lease, lead

logger = logging.getLogger("atelier.jobs")

TICK_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
"""Between two tries of what failed for one job."""


@dataclass
class _Running:
    worker: Worker
    waits_for: str = ""
    said: set[str] = field(default_factory=set)
    heartbeat_time: datetime | None = None
    heard: float = field(default_factory=time.monotonic)
    """When its last heartbeat was seen, by this process's own clock: neither its start, nor another machine's clock, nor a machine that
    slept counts as silence."""
    closing_since: float | None = None
    """Since when it ought to end."""
    killed_since: float | None = None
    fault: str = ""
    """Why it was ended though its job goes on."""


@dataclass(kw_only=True)
class Reconciler:
    """The one that starts and restarts workers of `services`: the only process that may (it holds the folder's lock), or the one that holds
    the `lease`."""

    ledger: JobLedger
    launcher: Launcher
    services: Sequence[str]
    lease: Lease | None = None
    max_workers: int = 1
    """Workers at once; 0: as many as there are jobs."""
    attempts: int = 3
    grace_seconds: float = 20.0
    silence_seconds: float = 120.0
    """A worker that runs but has not been heard of for so long hangs: it is ended, and the job begins again from its checkpoint."""
    _running: dict[str, _Running] = field(default_factory=dict)
    _pauses: dict[str, tuple[float, float]] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    def wake(self) -> None:
        """Looks again at once; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Works until the block ends, while it has the lease; then workers that do not outlive this process are asked to write a checkpoint
        and stop, and after the grace are ended."""
        self._loop = asyncio.get_running_loop()
        task = asyncio.create_task(lead(self.lease, self._work) if self.lease else self._work())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _work(self) -> None:
        self._running.clear()
        self._pauses.clear()
        trouble = ""
        with self.launcher.watching(self.services):
            try:
                while True:
                    try:
                        await self._tick()
                        trouble = ""
                    except NotNow as error:
                        if str(error) != trouble:
                            logger.warning("%s", error)
                        trouble = str(error)
                    except Exception:
                        logger.exception("reconciling failed; trying again")
                    await self._pause()
            finally:
                if not self.launcher.outlives:
                    await self._drain()

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(TICK_SECONDS):
                await self._wake.wait()
        self._wake.clear()

    async def _tick(self) -> None:
        jobs = await asyncio.to_thread(self.ledger.unended, self.services)
        known = {job.id: job for job in jobs}
        for identifier, worker in (await asyncio.to_thread(self.launcher.adopt, jobs)).items():
            if identifier not in self._running:
                logger.info("jobs/%s: has a worker already", identifier)
                waits_for = known[identifier].waits_for if identifier in known else ""
                self._running[identifier] = _Running(worker, waits_for=waits_for)
        alone = [job for job in jobs if job.id not in self._running]
        self._pauses = {key: pause for key, pause in self._pauses.items() if key in known or key in self._running}
        for identifier, running in list(self._running.items()):
            await self._apart(identifier, lambda i=identifier, r=running: self._look(i, r, known.get(i)))  # type: ignore[misc]
        for job in alone:
            await self._apart(job.id, lambda job=job: self._begin(job))  # type: ignore[misc]

    async def _apart(self, identifier: str, step: Callable[[], Awaitable[None]]) -> None:
        """One job's trouble is not the others'; it is left alone for a while then."""
        until, seconds = self._pauses.get(identifier, (0.0, TICK_SECONDS))
        if time.monotonic() < until:
            return
        try:
            await step()
            self._pauses.pop(identifier, None)
        except Exception as error:
            logger.warning("jobs/%s: %s", identifier, error, exc_info=not isinstance(error, NotNow))
            self._pauses[identifier] = (time.monotonic() + seconds, min(2 * seconds, LONGEST_PAUSE_SECONDS))

    async def _begin(self, job: Job) -> None:
        """Starts a worker where there is room; a job that had one has lost it."""
        if job.state is not State.PENDING:
            sentence = "its worker is gone" if self.launcher.outlives else "its control process was restarted"
            await self._lost(job, sentence, counts=False)
        elif not self.max_workers or len(self._running) < self.max_workers:
            logger.info("%s: starting a worker", job.name)
            try:
                self._running[job.id] = _Running(await asyncio.to_thread(self.launcher.start, job), waits_for=job.waits_for)
            except NotNow as error:
                sentence = str(error)
                if sentence != job.waits_for:
                    await asyncio.to_thread(lambda: self.ledger.tell(job.name, said=[sentence], waits_for=sentence))
                raise

    async def _look(self, identifier: str, running: _Running, job: Job | None) -> None:
        sight = running.worker.look()
        if job is not None:
            await self._tell(running, job, sight)
        if sight.end is not None:
            await self._ended(identifier, running, job, sight.end)
            return
        if job is not None and job.state is not State.CANCELLING and self._silent(running, job, sight):
            running.fault = running.fault or f"the worker was not heard of for {self.silence_seconds:.0f} s"
            logger.warning("%s: %s", job.name, running.fault)
        if job is None or job.state is State.CANCELLING or running.fault:
            await self._close(identifier, running, job, sight)

    async def _tell(self, running: _Running, job: Job, sight: Sight) -> None:
        new = [sentence for sentence in sight.said if sentence not in running.said]
        if new or sight.waits_for != running.waits_for:
            await asyncio.to_thread(lambda: self.ledger.tell(job.name, said=new, waits_for=sight.waits_for))
            running.said.update(new)
            running.waits_for = sight.waits_for

    def _silent(self, running: _Running, job: Job, sight: Sight) -> bool:
        """Whether a worker hangs; one that has not claimed its job yet counts from when it began to run."""
        if job.heartbeat_time != running.heartbeat_time or not sight.runs:
            running.heartbeat_time, running.heard = job.heartbeat_time, time.monotonic()
        return time.monotonic() - running.heard > self.silence_seconds

    async def _close(self, identifier: str, running: _Running, job: Job | None, sight: Sight) -> None:
        """Helps a worker to end that ought to: it has the grace to say so itself, if it runs and does not hang."""
        now = time.monotonic()
        running.closing_since = running.closing_since or now
        if running.killed_since is None:
            if running.fault or not sight.runs or now - running.closing_since > self.grace_seconds:
                await asyncio.to_thread(running.worker.kill)
                running.killed_since = now
        elif now - running.killed_since > self.grace_seconds:  # whatever is left of it is fenced off
            await self._ended(identifier, running, job, End(reason="the worker did not end in time"))

    async def _ended(self, identifier: str, running: _Running, job: Job | None, end: End) -> None:
        end = End(reason=running.fault) if running.fault else end
        if job is None:
            await self._over(identifier, running, end)
        else:
            if end.counts:
                await self._log(job.name, running.worker)
            after = await self._lost(job, end.reason, counts=end.counts)
            if after is None:
                return  # it has claimed the job once more meanwhile: the next look tells
            if after.state is State.CANCELLED:
                await asyncio.to_thread(running.worker.kill)
        del self._running[identifier]

    async def _over(self, identifier: str, running: _Running, end: End) -> None:
        """The worker of a job that is over has ended: of what was cancelled nothing stays, of an unknown failure the log."""
        name = f"jobs/{identifier}"
        try:
            job = await asyncio.to_thread(self.ledger.get, name)
        except AtelierError as error:
            if error.status is not Status.NOT_FOUND:
                raise
            await asyncio.to_thread(running.worker.kill)
            return
        if job.state is State.CANCELLED:
            await asyncio.to_thread(running.worker.kill)
        elif end.counts and job.error and status_pb2.Status.FromString(job.error).code == code_pb2.INTERNAL:
            await self._log(name, running.worker)

    async def _log(self, name: str, worker: Worker) -> None:
        lines = await asyncio.to_thread(worker.log_tail)
        if lines:
            events = [log_event("the last lines of the worker's log:", "error"), *(log_event(line) for line in lines)]
            await asyncio.to_thread(self.ledger.log, name, events)

    async def _lost(self, job: Job, reason: str, *, counts: bool) -> Job | None:
        """Takes the job from its worker; None where it is under another attempt by now."""

        def requeue() -> Job | None:
            attempt = job.attempt
            if job.state is State.PENDING:  # the worker ended before it could claim: that is an attempt too
                attempt = self.ledger.claim(job.name).attempt
            after = self.ledger.requeue(job.name, reason, counts=counts, budget=self.attempts, attempt=attempt)
            return after if after.attempt == attempt else None

        after = await asyncio.to_thread(requeue)
        logger.info("%s: %s; now %s", job.name, reason, after.state if after else "under another attempt")
        return after

    async def _drain(self) -> None:
        for running in self._running.values():
            running.worker.stop()
        end = time.monotonic() + self.grace_seconds
        while time.monotonic() < end and any(running.worker.look().end is None for running in self._running.values()):
            await asyncio.sleep(0.05)
        for running in self._running.values():
            await asyncio.to_thread(running.worker.kill)
        if self.lease is not None and not self.lease.held:
            return  # whoever has it now begins these jobs again
        for job in await asyncio.to_thread(self.ledger.unended, self.services):
            if job.id in self._running and job.state is not State.PENDING:
                await self._lost(job, "stopped together with its control process", counts=False)
