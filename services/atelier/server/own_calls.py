"""Calls of the server to converter and compiler, through the installation's own address."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import grpc
from google.rpc import status_pb2

from atelier.client.address import Address
from atelier.errors import failed_precondition
from atelier.jobs.job import State
from atelier.jobs.ledger import JobLedger
from atelier.rpc.channel import aio_channel, bearer
from atelier.rpc.status import from_call, from_proto
from atelier.v1 import compiler_pb2, compiler_pb2_grpc, converter_pb2, converter_pb2_grpc


class OwnCalls:
    """See reconciler.Calls."""

    def __init__(self, own: Address, *, ledger: JobLedger) -> None:
        self._channel = aio_channel(own.place, credentials=own.tls.channel_credentials() if own.tls else None)
        self._metadata = bearer(own.token)
        self._ledger = ledger

    async def convert(self, digest: str) -> str:
        """See reconciler.Calls."""
        stub: Any = converter_pb2_grpc.ConverterStub(self._channel)
        request = converter_pb2.ConvertRequest(
            request_id=f"deploy-{digest[:48]}", source=f"artifacts/{digest}", to=converter_pb2.FORMAT_DIFFUSERS
        )
        job = await self._call(stub.Convert, request)
        await self.check(job.name)
        found = await asyncio.to_thread(self._ledger.get, job.name)
        return found.outputs[0].digest if found.state is State.SUCCEEDED else ""

    async def compile_for(self, model: str, pool: str, fingerprint: str) -> str:
        """See reconciler.Calls; the same call again is the same job, as long as the machine is the same."""
        stub: Any = compiler_pb2_grpc.CompilerStub(self._channel)
        identity = hashlib.sha256(f"{model} {pool} {fingerprint}".encode()).hexdigest()
        request = compiler_pb2.CompileRequest(request_id=f"deploy-{identity[:48]}", model=f"artifacts/{model}", pool=f"pools/{pool}")
        return str((await self._call(stub.Compile, request)).name)

    async def check(self, job: str) -> None:
        """See reconciler.Calls."""
        found = await asyncio.to_thread(self._ledger.get, job)
        if found.state is State.FAILED:
            error = from_proto(status_pb2.Status.FromString(found.error))
            raise failed_precondition(error.reason, f"{job} failed: {error.message}", job=job)
        if found.state is State.CANCELLED:
            raise failed_precondition("CANCELLED", f"{job} was cancelled", job=job)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, metadata=self._metadata, timeout=60)
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from None
