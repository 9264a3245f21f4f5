"""Keeps Serve, engines and deployments in agreement: one application a pool, an engine for every graph, a MODEL for every SINGLE_FILE."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

from atelier.engines.fingerprint import Fingerprint
from atelier.errors import AtelierError, failed_precondition
from atelier.errors import Status as Code
from atelier.lease import Lease, lead
from atelier.server.deployments import Deployment, DeploymentLedger
from atelier.server.nodes import Nodes
from atelier.server.plan import EngineJob, engine_jobs, engines_for
from atelier.server.pool import Pools
from atelier.server.pool_keeper import PoolKeeper

logger = logging.getLogger("atelier.server")

TICK_SECONDS = 1.0
LOOK_EVERY_TICKS = 2
"""Ticks between looks at what Serve says of its applications."""
PASSING = (Code.UNAVAILABLE, Code.ABORTED, Code.NOT_FOUND, Code.DEADLINE_EXCEEDED)
"""Errors that the next look may not find any more."""


class Calls(Protocol):
    """What the reconciler asks of the installation. All raise AtelierError."""

    async def convert(self, digest: str) -> str:
        """The MODEL that a SINGLE_FILE becomes; empty while the conversion runs. Raises what it has failed with."""

    async def build(self, model: str, pool: str, fingerprint: str) -> str:
        """Asks the compiler for an engine, once for each machine (its fingerprint's key, empty for an unknown one); gives its digest, empty
        while it is being built. Raises what that has failed with."""


@dataclass(kw_only=True)
class ServeReconciler:
    """Works in one process of an installation: the one that has the lease, where there may be several."""

    keeper: PoolKeeper
    deployments: DeploymentLedger
    pools: Pools
    calls: Calls
    nodes: Nodes | None = None
    lease: Lease | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _askers: dict[tuple[str, str, str], str] = field(default_factory=dict)
    _said: dict[str, str] = field(default_factory=dict)

    def wake(self) -> None:
        """Looks again at once; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Works until the block ends."""
        self._loop = asyncio.get_running_loop()
        task = asyncio.create_task(lead(self.lease, self._work) if self.lease else self._work())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _work(self) -> None:
        ticks, begun = 0, False
        with self.nodes.running(self.wake) if self.nodes else nullcontext():
            while True:
                try:
                    if not begun:
                        await asyncio.to_thread(self.keeper.begin)
                        begun = True
                    if ticks % LOOK_EVERY_TICKS == 0:
                        await asyncio.to_thread(self.keeper.look)
                    await asyncio.to_thread(self.keeper.write, await self._tick())
                except Exception:
                    logger.exception("reconciling failed; trying again")
                ticks += 1
                try:
                    async with asyncio.timeout(TICK_SECONDS):
                        await self._wake.wait()
                except TimeoutError:
                    continue
                self._wake.clear()

    async def _tick(self) -> dict[str, dict[str, str]]:
        """Asks for what deployments lack; gives, by pool, why they do not get it, see `PoolState.problems`."""
        problems: dict[str, dict[str, str]] = {}
        deployments = await asyncio.to_thread(self.deployments.all)
        jobs = await asyncio.to_thread(lambda: engine_jobs(self.keeper.jobs, self.pools))
        self._forget(deployments)
        for deployment in deployments:
            try:
                await self._reconcile(deployment, jobs)
            except AtelierError as error:
                if error.status not in PASSING:
                    problems.setdefault(deployment.pool, {})[f"{deployment.name} {deployment.model}"] = error.message
                if self._said.get(deployment.name) != error.message:
                    logger.warning("%s: %s", deployment.name, error)
                self._said[deployment.name] = error.message
        return problems

    async def _reconcile(self, deployment: Deployment, jobs: list[EngineJob]) -> None:
        if not await asyncio.to_thread(self.pools.is_model, deployment.model):
            model = await self.calls.convert(deployment.model)
            if model:
                await asyncio.to_thread(lambda: self.deployments.update(replace(deployment, model=model), etag=deployment.etag))
            return
        if not deployment.compile or deployment.pool not in self.pools.serving:
            return
        for kind in await asyncio.to_thread(self._kinds, deployment.pool):
            if not await asyncio.to_thread(engines_for, deployment, kind, self.pools):
                await self._build(deployment, kind, jobs)

    def _kinds(self, pool: str) -> list[Fingerprint | None]:
        """What engines are needed for: an unknown kind of node only where none is about to come and tell."""
        state = self.pools.state(pool)
        idle = state.in_place and not state.target
        return [kind for kind in self.pools.kinds(pool) if kind or idle]

    async def _build(self, deployment: Deployment, kind: Fingerprint | None, jobs: list[EngineJob]) -> None:
        """Asks for an engine, once for every model of the graph. Raises what has come of it."""
        graph = await asyncio.to_thread(self.pools.graph, deployment.model)
        key = deployment.pool, graph, kind.key if kind else ""
        if key not in self._askers:
            if any((job.pool, job.graph) == (deployment.pool, graph) for job in jobs):
                return  # somebody else's may be what is wanted; otherwise there is time when it is over
            logger.info("%s: asking for an engine", deployment.name)
        asker = self._askers.setdefault(key, deployment.model)
        made = await self.calls.build(asker, deployment.pool, key[2])
        if made and kind and not await asyncio.to_thread(engines_for, deployment, kind, self.pools):
            await asyncio.to_thread(self._tell_difference, deployment, made, kind)

    def _tell_difference(self, deployment: Deployment, made: str, kind: Fingerprint) -> None:
        """An engine was built, and not for this kind of node. Raises where nodes of this kind are there now."""
        if self.pools.reports(deployment.pool):
            differences = self.pools.difference(made, kind)
            sentence = f"artifacts/{made} was built on another kind of machine than pools/{deployment.pool} has: {differences}"
            raise failed_precondition("ENGINE_FINGERPRINT_MISMATCH", sentence)

    def _forget(self, deployments: list[Deployment]) -> None:
        """An engine is asked for with the model that asked first, as long as that is deployed."""
        models = {(deployment.pool, deployment.model) for deployment in deployments}
        self._askers = {key: model for key, model in self._askers.items() if (key[0], model) in models}
