"""What the `server` brings into a control process: its services, Ray, and the reconciler between them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from atelier.artifacts.catalog import Catalog
from atelier.client.address import Address
from atelier.jobs.ledger import JobLedger
from atelier.lease import Lease
from atelier.ledger import Database
from atelier.meters import UNMEASURED, Meters
from atelier.pools import Pool
from atelier.rpc.auth import Tokens
from atelier.rpc.server import Service
from atelier.server.applications import Application
from atelier.server.changes import Changes
from atelier.server.deployments import DeploymentLedger
from atelier.server.gateway import ImagesServicer
from atelier.server.nodes import Nodes
from atelier.server.own_calls import OwnCalls
from atelier.server.pool import Pools
from atelier.server.pool_keeper import PoolKeeper
from atelier.server.pool_states import PoolStates
from atelier.server.proxies import Addresses, Proxies, addresses_of
from atelier.server.ray_cluster import RayCluster, local_ray
from atelier.server.reconciler import ServeReconciler
from atelier.server.replica_settings import ReplicaSettings
from atelier.server.replicas import ReplicasServicer
from atelier.server.servicer import ServerServicer
from atelier.server.standing import Standing, standing
from atelier.v1 import (
    image_pb2,
    image_pb2_grpc,
    replica_pb2,
    replica_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
)

REPLICA_SETTINGS = "/etc/atelier/replica/replica.json"
"""On nodes of a Ray that is elsewhere."""
SERVE_GRPC_PORT, SERVE_HTTP_PORT = 9000, 8000
"""There."""
ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
"""There in a pod that may ask the API server."""
LEASE = "serve"
"""Of the process that looks after the pools."""


@dataclass(frozen=True, kw_only=True)
class RayElsewhere:
    """A Ray that is there already: its dashboard's URL, its token, and the gRPC target of its Serve proxies."""

    dashboard: str
    token_file: Path
    serve_target: str
    replica_settings: str = REPLICA_SETTINGS
    """Path of a pool's settings on its nodes."""
    grpc_port: int = SERVE_GRPC_PORT
    http_port: int = SERVE_HTTP_PORT
    """What Serve is to open on its nodes."""


@dataclass(frozen=True, kw_only=True)
class ServingSettings:
    """How this installation serves. Without `elsewhere` it starts a Ray of its own on this machine, with the one pool there is."""

    data: Path
    pools: Sequence[Pool]
    internal_token: str
    internal_token_file: Path
    public_key: Path
    store_url: str
    replica_threads: int
    serve_port: int = 0
    """Of Serve's gRPC proxy; 0 draws one."""
    elsewhere: RayElsewhere | None = None
    nodes: Nodes | None = None
    """What runs the pools' nodes; None: Kubernetes, where pools name their Deployments, else somebody else."""
    proxies: Addresses | None = None
    """Where Serve's proxies are; None: where Ray's target says."""


class Serving:
    """The server's part of a control process. `services` answer clients, `internal` replicas; `started` runs Ray around the rest."""

    def __init__(
        self, settings: ServingSettings, *, catalog: Catalog, database: Database, ledger: JobLedger, meters: Meters = UNMEASURED
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._meters = meters
        self._reconciler: ServeReconciler | None = None
        self._database = database
        self._deployments, self._states = DeploymentLedger(database), PoolStates(database)
        self._pools = Pools(pools=settings.pools, deployments=self._deployments, catalog=catalog, states=self._states)
        self._catalog = catalog
        self._changes = Changes()
        self._grpc_port = settings.serve_port or _free_port()
        target = settings.elsewhere.serve_target if settings.elsewhere else f"127.0.0.1:{self._grpc_port}"
        self._proxies = Proxies(settings.proxies or addresses_of(target))

    @property
    def public(self) -> Sequence[Service]:
        """Images and Server."""
        images = ImagesServicer(
            deployments=self._deployments,
            pools=self._pools,
            proxies=self._proxies,
            internal_token=self._settings.internal_token,
            meters=self._meters,
        )
        server = ServerServicer(
            deployments=self._deployments, pools=self._pools, catalog=self._catalog, jobs=self._ledger, changed=self._wake
        )
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

    def standing(self) -> Standing:
        """How pools and deployments stand, for metrics."""
        return standing(self._deployments, self._pools)

    @property
    def internal(self) -> Sequence[Service]:
        """Replicas."""
        servicer = ReplicasServicer(deployments=self._deployments, pools=self._pools, changes=self._changes)
        descriptor = replica_pb2.DESCRIPTOR.services_by_name["Replicas"]
        return [Service(descriptor=descriptor, add=replica_pb2_grpc.add_ReplicasServicer_to_server, servicer=servicer)]

    @asynccontextmanager
    async def started(self, *, internal_target: str, own: Address) -> AsyncIterator[None]:
        """Puts the pools' applications in place, on a Ray that it starts where there is none.

        `own`: where this installation answers clients.
        """
        async with AsyncExitStack() as stack:
            if self._settings.elsewhere is not None:
                cluster, path = _cluster(self._settings.elsewhere), self._settings.elsewhere.replica_settings
            else:
                cluster, path = await self._local(stack, internal_target=internal_target, own=own)
            nodes = self._settings.nodes or _pods(self._settings.pools)
            calls = OwnCalls(own, ledger=self._ledger, catalog=self._catalog)
            stack.push_async_callback(calls.close)
            lease = Lease(database=self._database, name=LEASE) if self._settings.elsewhere else None
            keeper = PoolKeeper(
                cluster=cluster,
                applications=[Application(pool=pool, settings_path=path) for pool in self._settings.pools if pool.max_replicas],
                states=self._states,
                jobs=self._ledger,
                nodes=nodes,
                alone=lambda: lease is None or lease.held,
            )
            self._reconciler = ServeReconciler(
                keeper=keeper,
                deployments=self._deployments,
                pools=self._pools,
                calls=calls,
                nodes=nodes,
                lease=lease,
            )
            await stack.enter_async_context(self._reconciler.running())
            yield
        await self._proxies.close()

    async def _local(self, stack: AsyncExitStack, *, internal_target: str, own: Address) -> tuple[RayCluster, str]:
        """Starts Ray here; gives it and the path of its replica's settings."""
        settings = self._settings
        (pool,) = settings.pools
        await asyncio.to_thread(self._deployments.forget_reports)  # whoever wrote them ended with the Ray of before
        await asyncio.to_thread(self._states.forget)
        path = settings.data / "replica.json"
        ReplicaSettings(
            pool=pool.name,
            gpu=pool.label,
            internal_target=internal_target,
            internal_token_file=str(settings.internal_token_file),
            public_key=str(settings.public_key),
            cache=str(settings.data / "replica-cache"),
            log=str(settings.data / "logs" / "replica.log"),
            store_url=settings.store_url,
            threads=settings.replica_threads,
            tls=own.tls.as_environment() if own.tls else {},
        ).write(path)
        labels = {"atelier.dev/pool": pool.name, "atelier.dev/gpu": pool.label}
        cluster = await stack.enter_async_context(
            local_ray(logs=settings.data / "logs", labels=labels, num_cpus=os.cpu_count() or 1, grpc_port=self._grpc_port)
        )
        return cluster, str(path)

    def _wake(self) -> None:
        self._changes.notify()
        if self._reconciler is not None:
            self._reconciler.wake()


def _cluster(elsewhere: RayElsewhere) -> RayCluster:
    return RayCluster(
        dashboard=elsewhere.dashboard.rstrip("/"),
        token=Tokens(elsewhere.token_file).all[0],
        grpc_port=elsewhere.grpc_port,
        http_port=elsewhere.http_port,
        host="0.0.0.0",
    )


def _pods(pools: Sequence[Pool]) -> Nodes | None:
    """The pools' nodes as pods; somebody else's (KubeRay's) are looked at alone."""
    if not any(pool.deployment for pool in pools) and not ACCOUNT_TOKEN.exists():
        return None
    from atelier.kubernetes.nodes import PodNodes
    from atelier.kubernetes.objects import core

    api, namespace = core()
    return PodNodes(api, namespace=namespace, pools={pool.name: pool.deployment for pool in pools if pool.max_replicas})


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
