"""Keeps Serve, engines and deployments in agreement: one application a pool, an engine for every graph, a MODEL for every SINGLE_FILE."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from atelier.engines.fingerprint import Fingerprint
from atelier.engines.profile import DEFAULT_BATCH_SIZES
from atelier.errors import AtelierError
from atelier.errors import Status as Code
from atelier.pools import Pool
from atelier.server.deployments import Deployment, DeploymentLedger
from atelier.server.pool import Pools
from atelier.server.ray_cluster import RayCluster

logger = logging.getLogger("atelier.server")

TICK_SECONDS = 1.0
LOOK_EVERY_TICKS = 10
"""Ticks between looks at what Serve says of its applications."""

MAX_REQUESTS = 4 * DEFAULT_BATCH_SIZES[-1]
"""At a replica, and as many again waiting at Serve's proxy: some rounds of the largest batch; what is more is refused at once."""
AGAIN_TICKS = 60
"""Ticks before an application whose replica did not start is built anew."""
PASSING = (Code.UNAVAILABLE, Code.ABORTED, Code.NOT_FOUND, Code.DEADLINE_EXCEEDED)
"""Errors that the next look may not find any more."""
WORDS = {
    "NOT_STARTED": "its replica is being started",
    "DEPLOYING": "its replica is being started",
    "RUNNING": "",
    "UNHEALTHY": "its replica was lost and is started again",
    "DEPLOY_FAILED": "its replica does not start and is tried again; the server's log has the reason",
}
"""What Serve says of an application -> what is said to clients. Serve's own sentences hold tracebacks."""


class Calls(Protocol):
    """What the reconciler asks of the installation. All raise AtelierError."""

    async def convert(self, digest: str) -> str:
        """The MODEL that a SINGLE_FILE becomes; empty while the conversion runs. Raises when it has failed."""

    async def compile_for(self, model: str, pool: str, fingerprint: str) -> str:
        """Asks the compiler for an engine, once for each machine (its fingerprint's key); gives the job."""

    async def check(self, job: str) -> None:
        """Raises what a job has failed with."""


@dataclass(frozen=True, kw_only=True)
class Application:
    """A pool's application on Serve."""

    pool: Pool
    settings_path: str

    def schema(self, *, build: int = 0) -> dict[str, Any]:
        """For Serve's config. Nothing here depends on deployments, so that those never replace a replica. Another `build` makes Serve try
        again to start what it has given up."""
        pool = self.pool
        return {
            "name": pool.name,
            "route_prefix": f"/{pool.name}",
            "import_path": "atelier.server.replica:build",
            "args": {"settings": self.settings_path, "build": build},
            "deployments": [
                {
                    "name": "Replica",
                    "autoscaling_config": {
                        "min_replicas": pool.min_replicas,
                        "max_replicas": pool.max_replicas,
                        "target_ongoing_requests": pool.target_ongoing_requests,
                        "upscale_delay_s": pool.upscale_delay_seconds,
                        "downscale_delay_s": pool.downscale_delay_seconds,
                        "downscale_to_zero_delay_s": pool.downscale_to_zero_delay_seconds,
                    },
                    "max_ongoing_requests": MAX_REQUESTS,
                    "max_queued_requests": MAX_REQUESTS,
                    "graceful_shutdown_timeout_s": 60,
                    "health_check_period_s": 5,
                    "health_check_timeout_s": 30,
                    "ray_actor_options": {
                        "num_cpus": pool.num_cpus or os.cpu_count() or 1,
                        "num_gpus": pool.gpus,
                        "label_selector": {"atelier.dev/pool": pool.name, "atelier.dev/gpu": pool.label},
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
    calls: Calls
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _asked: dict[tuple[str, str], str] = field(default_factory=dict)
    _builds: dict[str, int] = field(default_factory=dict)
    _placed: bool = False
    _said: dict[str, str] = field(default_factory=dict)

    def wake(self) -> None:
        """Looks again at once; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Works until the block ends."""
        self._loop = asyncio.get_running_loop()
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
                if ticks % LOOK_EVERY_TICKS == 0 or not self._placed:
                    await asyncio.to_thread(self._look, again=ticks % AGAIN_TICKS == 0)
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
        problems = {}
        for deployment in await asyncio.to_thread(self.deployments.all):
            try:
                await self._reconcile(deployment)
            except AtelierError as error:
                key = deployment.name, deployment.model
                if error.status not in PASSING:
                    problems[key] = error.message
                if self._said.get(deployment.name) != error.message:
                    logger.warning("%s: %s", deployment.name, error)
                self._said[deployment.name] = error.message
        self.pools.problems = problems

    async def _reconcile(self, deployment: Deployment) -> None:
        if not await asyncio.to_thread(self.pools.is_model, deployment.model):
            model = await self.calls.convert(deployment.model)
            if model:
                await asyncio.to_thread(lambda: self.deployments.update(replace(deployment, model=model), etag=deployment.etag))
            return
        if not deployment.compile:
            return
        graph = await asyncio.to_thread(self.pools.graph, deployment.model)
        for fingerprint in await asyncio.to_thread(self.pools.fingerprints, deployment.pool):
            if not await asyncio.to_thread(self.pools.engines, deployment.model, fingerprint):
                await self._ask(deployment, graph, fingerprint)

    async def _ask(self, deployment: Deployment, graph: str, fingerprint: Fingerprint) -> None:
        """Asks for an engine, once for every model of the graph. Raises what the compilation has failed with."""
        key = graph, fingerprint.key
        if key not in self._asked:
            logger.info("%s: asking for an engine", deployment.name)
            self._asked[key] = await self.calls.compile_for(deployment.model, deployment.pool, fingerprint.key)
        await self.calls.check(self._asked[key])

    def _put(self) -> None:
        self.cluster.put_applications(
            {
                "proxy_location": "EveryNode",
                "http_options": {"host": self.cluster.host, "port": self.cluster.http_port},
                "grpc_options": {
                    "port": self.cluster.grpc_port,
                    "grpc_servicer_functions": ["atelier.v1.replica_pb2_grpc.add_SamplingServicer_to_server"],
                    "enable_reflection": False,
                },
                "applications": [application.schema(build=self._builds.get(application.pool.name, 0)) for application in self.applications],
            }
        )

    def _look(self, *, again: bool) -> None:
        if not self._placed:  # whatever is there may be of another version, or for other pools
            self._put()
            self._placed = True
        found = self.cluster.applications().get("applications", {})
        missing = [application.pool.name for application in self.applications if application.pool.name not in found]
        for pool, state in found.items():
            status, text = state.get("status", ""), state.get("message", "")
            self.pools.messages[pool] = WORDS.get(status, "")
            self.pools.targets[pool] = sum(each.get("target_num_replicas", 0) for each in state.get("deployments", {}).values())
            if text and text != self._said.get(pool):
                logger.warning("Serve says of pools/%s: %s %s", pool, status, text)
            self._said[pool] = text
            if status == "DEPLOY_FAILED" and again:
                self._builds[pool] = self._builds.get(pool, 0) + 1
                missing.append(pool)
        if missing:
            self._put()
