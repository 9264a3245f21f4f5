"""The internal Replicas service: what replicas report, and what they shall hold."""

from __future__ import annotations

import asyncio
from typing import Any

from atelier.server.deployments import DeploymentLedger
from atelier.server.messages import fingerprint_from_message
from atelier.server.pool import Pools
from atelier.v1 import replica_pb2, replica_pb2_grpc


class ReplicasServicer(replica_pb2_grpc.ReplicasServicer):
    """Answers replicas, for the internal token."""

    def __init__(self, *, deployments: DeploymentLedger, pools: Pools) -> None:
        self._deployments = deployments
        self._pools = pools

    async def Report(self, request: replica_pb2.ReportRequest, context: Any) -> replica_pb2.ReportResponse:  # type: ignore[override]
        """Keeps the report; answers with the models of the pool's deployments and the engines that run them there."""
        return replica_pb2.ReportResponse(models=await asyncio.to_thread(self._report, request))

    def _report(self, request: replica_pb2.ReportRequest) -> list[replica_pb2.WantedModel]:
        pool = request.pool.removeprefix("pools/")
        self._deployments.report(request.replica, pool, request.SerializeToString())
        fingerprint = fingerprint_from_message(request.fingerprint)
        wanted = []
        for deployment in self._deployments.all():
            if deployment.pool == pool and self._pools.is_model(deployment.model):
                engines = self._pools.engines(deployment.model, fingerprint)
                name = f"artifacts/{deployment.model}"
                wanted.append(replica_pb2.WantedModel(model=name, engines=engines, serve_eager=deployment.serve_eager))
        return wanted
