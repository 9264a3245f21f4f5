"""Keeps Serve, engines and deployments in agreement: one application a pool, an engine for every graph, a MODEL for every SINGLE_FILE."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from atelier.errors import AtelierError
from atelier.server.deployments import Deployment, DeploymentLedger
from atelier.server.pool import Pools
from atelier.server.ray_cluster import RayCluster

logger = logging.getLogger("atelier.server")

TICK_SECONDS = 1.0
LOOK_EVERY_TICKS = 10
"""Ticks between looks at what Serve says of its applications."""

Convert = Callable[[str], Awaitable[str]]
"""Takes the digest of a SINGLE_FILE; gives that of its MODEL, empty while the conversion runs."""
CompileFor = Callable[[str, str], Awaitable[None]]
"""Takes the digest of a MODEL and a pool; asks the compiler, once, for an engine."""


@dataclass(frozen=True, kw_only=True)
class Application:
    """A pool's application on Serve."""

    pool: str
    gpu: str
    settings_path: str
    num_cpus: int
    num_gpus: int = 0
    min_replicas: int = 1
    max_replicas: int = 1

    def schema(self) -> dict[str, Any]:
        """For Serve's config. Nothing here depends on deployments, so that those never replace a replica."""
        return {
            "name": self.pool,
            "route_prefix": f"/{self.pool}",
            "import_path": "atelier.server.replica:build",
            "args": {"settings": self.settings_path},
            "deployments": [
                {
                    "name": "Replica",
                    "autoscaling_config": {"min_replicas": self.min_replicas, "max_replicas": self.max_replicas},
                    "max_ongoing_requests": 64,
                    "max_queued_requests": 64,
                    "graceful_shutdown_timeout_s": 60,
                    "health_check_period_s": 5,
                    "health_check_timeout_s": 30,
                    "ray_actor_options": {
                        "num_cpus": self.num_cpus,
                        "num_gpus": self.num_gpus,
                        "label_selector": {"atelier.dev/pool": self.pool, "atelier.dev/gpu": self.gpu},
                    },
                }
            ],
        }


@dataclass(kw_only=True)
class ServeReconciler:
    """The one writer of Serve's config."""

    cluster: RayCluster
    applications: list[Application]
    deployments: DeploymentLedger
    pools: Pools
    convert: Convert
    compile_for: CompileFor
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _asked: set[tuple[str, str]] = field(default_factory=set)

    def wake(self) -> None:
        """Looks again at once; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Works until the block ends."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.deployments.forget_reports)
        await asyncio.to_thread(self._put)
        task = asyncio.create_task(self._work())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _work(self) -> None:
        ticks = 0
        while True:
            try:
                if ticks % LOOK_EVERY_TICKS == 0:
                    await asyncio.to_thread(self._look)
                await self._tick()
            except Exception:
                logger.exception("reconciling failed; trying again")
            ticks += 1
            try:
                async with asyncio.timeout(TICK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()

    async def _tick(self) -> None:
        for deployment in await asyncio.to_thread(self.deployments.all):
            try:
                await self._reconcile(deployment)
            except AtelierError as error:
                logger.warning("%s: %s", deployment.name, error)

    async def _reconcile(self, deployment: Deployment) -> None:
        if not await asyncio.to_thread(self.pools.is_model, deployment.model):
            model = await self.convert(deployment.model)
            if model:
                await asyncio.to_thread(lambda: self.deployments.update(replace(deployment, model=model), etag=deployment.etag))
            return
        if not deployment.compile:
            return
        graph = await asyncio.to_thread(self.pools.graph, deployment.model)
        for fingerprint in await asyncio.to_thread(self.pools.fingerprints, deployment.pool):
            key = (graph, fingerprint.key)
            engines = await asyncio.to_thread(self.pools.engines, deployment.model, fingerprint)
            if engines or key in self._asked:
                continue
            self._asked.add(key)
            logger.info("%s: asking for an engine", deployment.name)
            await self.compile_for(deployment.model, deployment.pool)

    def _put(self) -> None:
        self.cluster.put_applications(
            {
                "proxy_location": "EveryNode",
                "http_options": {"host": "127.0.0.1", "port": self.cluster.http_port},
                "grpc_options": {
                    "port": self.cluster.grpc_port,
                    "grpc_servicer_functions": ["atelier.v1.replica_pb2_grpc.add_SamplingServicer_to_server"],
                    "enable_reflection": False,
                },
                "applications": [application.schema() for application in self.applications],
            }
        )

    def _look(self) -> None:
        found = self.cluster.applications().get("applications", {})
        if any(application.pool not in found for application in self.applications):
            self._put()
        for application in self.applications:
            state = found.get(application.pool, {})
            self.pools.messages[application.pool] = f"{state.get('status', 'NOT_STARTED')} {state.get('message', '')}".strip()
