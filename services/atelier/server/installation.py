"""What the `server` brings into a control process: its services, Ray, and the reconciler between them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.rpc import status_pb2

from atelier.artifacts.catalog import Catalog
from atelier.client.address import Address
from atelier.errors import failed_precondition
from atelier.jobs.job import State
from atelier.jobs.ledger import JobLedger
from atelier.ledger import Database
from atelier.rpc.channel import aio_channel, bearer
from atelier.rpc.server import Service
from atelier.rpc.status import from_call, from_proto
from atelier.server.changes import Changes
from atelier.server.deployments import DeploymentLedger
from atelier.server.gateway import ImagesServicer
from atelier.server.pool import Pools
from atelier.server.ray_cluster import local_ray
from atelier.server.reconciler import Application, ServeReconciler
from atelier.server.replica_settings import ReplicaSettings
from atelier.server.replicas import ReplicasServicer
from atelier.server.servicer import ServerServicer
from atelier.v1 import (
    compiler_pb2,
    compiler_pb2_grpc,
    converter_pb2,
    converter_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    replica_pb2,
    replica_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
)

POOL = "local"
"""The one pool of a machine that is no cluster."""


@dataclass(frozen=True, kw_only=True)
class ServingSettings:
    """How this installation serves."""

    data: Path
    internal_token: str
    public_key: Path
    gpu: str
    """The product in the pool's label, `cpu` or like `NVIDIA-A10`."""
    store_url: str
    replica_threads: int
    serve_port: int = 0
    """Of Serve's gRPC proxy; 0 draws one."""


class Serving:
    """The server's part of a control process. `services` answer clients, `internal` replicas; `started` runs Ray around the rest."""

    def __init__(self, settings: ServingSettings, *, catalog: Catalog, database: Database, ledger: JobLedger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._reconciler: ServeReconciler | None = None
        self._deployments = DeploymentLedger(database)
        self._pools = Pools(deployments=self._deployments, catalog=catalog, labels={POOL: settings.gpu})
        self._catalog = catalog
        self._changes = Changes()
        self._grpc_port = settings.serve_port or _free_port()
        self._channel = aio_channel(f"127.0.0.1:{self._grpc_port}")

    @property
    def public(self) -> Sequence[Service]:
        """Images and Server."""
        images = ImagesServicer(
            deployments=self._deployments, pools=self._pools, channel=self._channel, internal_token=self._settings.internal_token
        )
        server = ServerServicer(deployments=self._deployments, pools=self._pools, catalog=self._catalog, changed=self._wake)
        return [
            Service(
                descriptor=image_pb2.DESCRIPTOR.services_by_name["Images"], add=image_pb2_grpc.add_ImagesServicer_to_server, servicer=images
            ),
            Service(
                descriptor=server_pb2.DESCRIPTOR.services_by_name["Server"],
                add=server_pb2_grpc.add_ServerServicer_to_server,
                servicer=server,
            ),
        ]

    @property
    def internal(self) -> Sequence[Service]:
        """Replicas."""
        servicer = ReplicasServicer(deployments=self._deployments, pools=self._pools, changes=self._changes)
        descriptor = replica_pb2.DESCRIPTOR.services_by_name["Replicas"]
        return [Service(descriptor=descriptor, add=replica_pb2_grpc.add_ReplicasServicer_to_server, servicer=servicer)]

    @asynccontextmanager
    async def started(self, *, internal_target: str, own: Address) -> AsyncIterator[None]:
        """Starts Ray and puts the pool's application in place; ends both with the block. `own`: where this installation answers clients."""
        settings = self._settings
        path = settings.data / "replica.json"
        ReplicaSettings(
            pool=POOL,
            internal_target=internal_target,
            internal_token=settings.internal_token,
            public_key=str(settings.public_key),
            cache=str(settings.data / "replica-cache"),
            log=str(settings.data / "logs" / "replica.log"),
            store_url=settings.store_url,
            threads=settings.replica_threads,
            tls=own.tls.as_environment() if own.tls else {},
        ).write(path)
        labels = {"atelier.dev/pool": POOL, "atelier.dev/gpu": settings.gpu}
        cpus = os.cpu_count() or 1
        application = Application(
            pool=POOL, gpu=settings.gpu, settings_path=str(path), num_cpus=cpus, num_gpus=0 if settings.gpu == "cpu" else 1
        )
        async with AsyncExitStack() as stack:
            cluster = await stack.enter_async_context(
                local_ray(logs=settings.data / "logs", labels=labels, num_cpus=cpus, grpc_port=self._grpc_port)
            )
            calls = OwnCalls(own, ledger=self._ledger)
            stack.push_async_callback(calls.close)
            self._reconciler = ServeReconciler(
                cluster=cluster,
                applications=[application],
                deployments=self._deployments,
                pools=self._pools,
                calls=calls,
            )
            await stack.enter_async_context(self._reconciler.running())
            yield
        await self._channel.close()

    def _wake(self) -> None:
        self._changes.notify()
        if self._reconciler is not None:
            self._reconciler.wake()


class OwnCalls:
    """Calls of the server to converter and compiler, through the installation's own address."""

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


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
