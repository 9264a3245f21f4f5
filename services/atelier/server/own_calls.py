"""Calls of the server to converter and compiler, through the installation's own address."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import grpc
from google.rpc import status_pb2

from atelier.artifacts.catalog import Catalog
from atelier.client.address import Address
from atelier.errors import AtelierError, Status, failed_precondition
from atelier.jobs.job import Job, State
from atelier.jobs.ledger import JobLedger
from atelier.ledger import now
from atelier.rpc.channel import aio_channel, bearer
from atelier.rpc.status import from_call, from_proto
from atelier.v1 import compiler_pb2, compiler_pb2_grpc, converter_pb2, converter_pb2_grpc

FIRST_PAUSE, LAST_PAUSE = timedelta(minutes=10), timedelta(days=1)
"""Between a job that failed and the next one for the same; twice as long each time."""
LASTING = (Status.INVALID_ARGUMENT, Status.FAILED_PRECONDITION, Status.NOT_FOUND)
"""Errors that another try would meet again: it is made after the last pause."""

Submit = Callable[[str], Awaitable[Any]]
"""Asks for a job under a request id."""


class OwnCalls:
    """See reconciler.Calls. What it has asked for is found again by request ids, whatever process asked, and however long ago.

    What a job has made and somebody has deleted is asked for anew, as is what has failed, after a pause; at once where the job was deleted.
    """

    def __init__(self, own: Address, *, ledger: JobLedger, catalog: Catalog, clock: Callable[[], datetime] = now) -> None:
        self._channel = aio_channel(own.place, credentials=own.tls.channel_credentials() if own.tls else None)
        self._metadata = bearer(own.token)
        self._ledger = ledger
        self._catalog = catalog
        self._clock = clock
        self._asked: dict[str, tuple[int, str]] = {}

    async def convert(self, digest: str) -> str:
        """See reconciler.Calls."""
        stub: Any = converter_pb2_grpc.ConverterStub(self._channel)

        def submit(request_id: str) -> Awaitable[Any]:
            return self._call(
                stub.Convert,
                converter_pb2.ConvertRequest(request_id=request_id, source=f"artifacts/{digest}", to=converter_pb2.FORMAT_DIFFUSERS),
            )

        return await self._made(f"deploy-{digest[:48]}", submit)

    async def build(self, model: str, pool: str, fingerprint: str) -> str:
        """See reconciler.Calls."""
        stub: Any = compiler_pb2_grpc.CompilerStub(self._channel)
        identity = hashlib.sha256(f"{model} {pool} {fingerprint}".encode()).hexdigest()

        def submit(request_id: str) -> Awaitable[Any]:
            request = compiler_pb2.CompileRequest(request_id=request_id, model=f"artifacts/{model}", pool=f"pools/{pool}")
            return self._call(stub.Compile, request)

        return await self._made(f"deploy-{identity[:48]}", submit)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def _made(self, identity: str, submit: Submit) -> str:
        """Digest of what the job for `identity` has made; empty while it runs. Raises what it has failed with."""
        turn, name = self._asked.get(identity, (0, ""))
        while True:
            job = await asyncio.to_thread(self._job, name) if name else None
            if job is None:
                name = (await submit(f"{identity}-{turn}" if turn else identity)).name
                job = await asyncio.to_thread(self._ledger.get, name)
            if not await asyncio.to_thread(self._is_due, job, turn):
                break
            turn, name = turn + 1, ""
        self._asked[identity] = turn, name
        _raise_failure(job)
        return job.outputs[0].digest if job.state is State.SUCCEEDED else ""

    def _job(self, name: str) -> Job | None:
        """None where it was deleted."""
        try:
            return self._ledger.get(name)
        except AtelierError as error:
            if error.status is Status.NOT_FOUND:
                return None
            raise

    def _is_due(self, job: Job, turn: int) -> bool:
        """Whether another job shall be asked for instead."""
        if job.state is State.SUCCEEDED:
            return not self._is_there(job.outputs[0].digest)
        if job.state is State.FAILED and job.end_time is not None:
            lasting = _error(job).status in LASTING
            pause = LAST_PAUSE if lasting else min(FIRST_PAUSE * 2 ** min(turn, 20), LAST_PAUSE)
            return self._clock() >= job.end_time + pause
        return False

    def _is_there(self, digest: str) -> bool:
        try:
            self._catalog.resolve(digest)
        except AtelierError as error:
            if error.status is Status.NOT_FOUND:
                return False
            raise
        return True

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, metadata=self._metadata, timeout=60)
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from None


def _error(job: Job) -> AtelierError:
    return from_proto(status_pb2.Status.FromString(job.error))


def _raise_failure(job: Job) -> None:
    if job.state is State.FAILED:
        error = _error(job)
        raise failed_precondition(error.reason, f"{job.name} failed: {error.message}", job=job.name)
    if job.state is State.CANCELLED:
        raise failed_precondition("CANCELLED", f"{job.name} was cancelled; delete it to have it tried again", job=job.name)
