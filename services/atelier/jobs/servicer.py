"""The Jobs service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from atelier.artifacts.store import Store
from atelier.errors import invalid_field
from atelier.jobs.events import state_from_enum
from atelier.jobs.job import ENDED, Event
from atelier.jobs.ledger import JobLedger
from atelier.jobs.messages import event_to_message, to_message
from atelier.v1 import job_pb2, job_pb2_grpc

MAX_PAGE = 500
POLL_SECONDS = 0.25
HEARTBEAT_SECONDS = 10.0


def picture_key(job: str, step: int, index: int) -> str:
    """Where a sample picture lies in the store; `job` is `jobs/{id}`."""
    return f"pictures/{job.removeprefix('jobs/')}/{step:08d}-{index}.png"


class JobsServicer(job_pb2_grpc.JobsServicer):
    """Shows jobs and stops them; any control process can, from the ledger."""

    def __init__(self, *, ledger: JobLedger, store: Store) -> None:
        self._ledger = ledger
        self._store = store

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Any) -> job_pb2.Job:  # type: ignore[override]
        """One job."""
        return to_message(await asyncio.to_thread(self._ledger.get, request.name))

    async def ListJobs(self, request: job_pb2.ListJobsRequest, context: Any) -> job_pb2.ListJobsResponse:  # type: ignore[override]
        """A page of jobs."""
        if request.page_size < 0:
            raise invalid_field("page_size", "must not be negative")
        size, state = min(request.page_size or 50, MAX_PAGE), state_from_enum(request.state)
        jobs, token = await asyncio.to_thread(lambda: self._ledger.page(state=state, page_size=size, page_token=request.page_token))
        return job_pb2.ListJobsResponse(jobs=[to_message(job) for job in jobs], next_page_token=token)

    async def WatchJob(self, request: job_pb2.WatchJobRequest, context: Any) -> AsyncIterator[job_pb2.WatchJobResponse]:  # type: ignore[override]
        """Events from a sequence on, a heartbeat when nothing happens, the job at the end."""
        sequence, spoken = request.after_sequence, time.monotonic()
        while True:
            events, job = await asyncio.to_thread(lambda after: self._ledger.events(request.name, after_sequence=after), sequence)
            for event in events:
                sequence, spoken = event.sequence, time.monotonic()
                yield await self._response(request, event)
            if job.state in ENDED and sequence >= job.last_sequence:
                yield job_pb2.WatchJobResponse(job=to_message(job))
                return
            if time.monotonic() - spoken > HEARTBEAT_SECONDS:
                spoken = time.monotonic()
                yield job_pb2.WatchJobResponse(job=to_message(job))
            await asyncio.sleep(POLL_SECONDS)

    async def CancelJob(self, request: job_pb2.CancelJobRequest, context: Any) -> job_pb2.Job:  # type: ignore[override]
        """Asks a job to stop."""
        return to_message(await asyncio.to_thread(self._ledger.cancel, request.name))

    async def DeleteJob(self, request: job_pb2.DeleteJobRequest, context: Any) -> job_pb2.DeleteJobResponse:  # type: ignore[override]
        """Deletes a job that has ended, its checkpoints and pictures."""
        await asyncio.to_thread(self._delete, request.name)
        return job_pb2.DeleteJobResponse()

    async def _response(self, request: job_pb2.WatchJobRequest, event: Event) -> job_pb2.WatchJobResponse:
        message = event_to_message(event)
        if message.WhichOneof("event") == "sample" and request.include_pictures:
            key = picture_key(request.name, message.sample.step, message.sample.index)
            message.sample.png = await asyncio.to_thread(self._store.object, key)
        return job_pb2.WatchJobResponse(event=message)

    def _delete(self, name: str) -> None:
        self._ledger.delete(name)
        identifier = name.removeprefix("jobs/")
        # By prefix, so that what an attempt wrote and could not commit goes too.
        for place in ("checkpoints", "pictures"):
            self._store.delete_below(f"{place}/{identifier}/")
