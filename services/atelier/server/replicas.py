"""The internal Replicas service: what replicas report, and what they shall hold."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from atelier.server.changes import Changes
from atelier.server.deployments import DeploymentLedger
from atelier.server.messages import fingerprint_from_message
from atelier.server.pool import Pools
from atelier.v1 import replica_pb2, replica_pb2_grpc

HOLD_SECONDS = 10.0
LOOK_SECONDS = 2.0
"""How often to look for what another process has changed, such as a new engine."""


class ReplicasServicer(replica_pb2_grpc.ReplicasServicer):
    """Answers replicas, for the internal token."""

    def __init__(self, *, deployments: DeploymentLedger, pools: Pools, changes: Changes) -> None:
        self._deployments = deployments
        self._pools = pools
        self._changes = changes

    async def Report(self, request: replica_pb2.ReportRequest, context: Any) -> replica_pb2.ReportResponse:  # type: ignore[override]
        """Keeps the report; answers with the models of the pool's deployments and the engines that run them there, once they are new."""
        end = asyncio.get_running_loop().time() + HOLD_SECONDS
        await asyncio.to_thread(self._deployments.report, request.replica, _pool(request), request.SerializeToString())
        while True:
            models = await asyncio.to_thread(self._wanted, request)
            etag = _etag(models)
            left = end - asyncio.get_running_loop().time()
            if etag != request.seen_etag or left <= 0:
                return replica_pb2.ReportResponse(models=models, etag=etag)
            await self._changes.wait(min(LOOK_SECONDS, left))

    def _wanted(self, request: replica_pb2.ReportRequest) -> list[replica_pb2.WantedModel]:
        pool = _pool(request)
        fingerprint = fingerprint_from_message(request.fingerprint)
        wanted = []
        for deployment in self._deployments.all():
            if deployment.pool == pool and self._pools.is_model(deployment.model):
                engines = self._pools.engines(deployment.model, fingerprint)
                name = f"artifacts/{deployment.model}"
                wanted.append(replica_pb2.WantedModel(model=name, engines=engines, serve_eager=deployment.serve_eager))
        return wanted


def _pool(request: replica_pb2.ReportRequest) -> str:
    return request.pool.removeprefix("pools/")


def _etag(models: Sequence[replica_pb2.WantedModel]) -> str:
    content = b"".join(model.SerializeToString(deterministic=True) for model in models)
    return hashlib.sha256(content).hexdigest()[:16]
