"""Pools and engines as protobuf messages, for the servicer."""

from __future__ import annotations

from collections.abc import Sequence

from atelier.jobs.job import Job
from atelier.pools import Pool
from atelier.server.messages import fingerprint_to_message
from atelier.server.plan import PlannedEngine
from atelier.server.pool_states import PoolState
from atelier.v1 import replica_pb2, server_pb2


def pool_to_message(pool: Pool, state: PoolState, reports: Sequence[replica_pb2.ReportRequest], waiting: Sequence[Job]) -> server_pb2.Pool:
    """A pool as the API shows it."""
    models = [model for report in reports for model in report.models]
    return server_pb2.Pool(
        name=f"pools/{pool.name}",
        gpu=pool.label,
        replicas=len(reports),
        fingerprints=[report.fingerprint for report in reports],
        engines=sorted({model.engine_artifact for model in models if model.engine_artifact}),
        models=sorted({model.model for model in models if not model.error}),
        message=next((report.error for report in reports if report.error), "") or state.message,
        min_replicas=pool.min_replicas,
        max_replicas=pool.max_replicas,
        target_replicas=state.target,
        nodes=[server_pb2.Node(name=node.name, ready=node.ready, reason=node.reason) for node in state.nodes],
        waiting_jobs=[server_pb2.WaitingJob(job=job.name, reason=job.waits_for) for job in waiting],
    )


def planned_to_message(planned: PlannedEngine) -> server_pb2.PlannedEngine:
    """A planned engine as the API shows it."""
    return server_pb2.PlannedEngine(
        pool=f"pools/{planned.pool}",
        fingerprint=fingerprint_to_message(planned.kind) if planned.kind else None,
        present=planned.present,
        graph=planned.graph,
        deployments=planned.deployments,
        state=planned.state,
        engine=planned.engine,
        job=planned.job,
        message=planned.message,
    )
