"""Which engines the deployments need: those that are there, that are being built, that have to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf import any_pb2

from atelier.engines.fingerprint import Fingerprint
from atelier.jobs.job import Job
from atelier.server.deployments import Deployment
from atelier.server.pool import Pools
from atelier.v1 import compiler_pb2, server_pb2


class Jobs(Protocol):
    """What is asked of the ledger of jobs."""

    def unended(self, services: Sequence[str]) -> list[Job]:
        """Jobs of these services that are not over, oldest first."""


@dataclass(frozen=True, kw_only=True)
class EngineJob:
    """A compilation that is not over: of a graph, on a pool."""

    name: str
    pool: str
    graph: str


@dataclass(frozen=True, kw_only=True)
class PlannedEngine:
    """What deployments of one graph need on one kind of node; `kind` is None where the pool never had a replica."""

    pool: str
    graph: str
    kind: Fingerprint | None
    present: bool
    deployments: tuple[str, ...]
    state: server_pb2.EngineState.ValueType
    engine: str = ""
    job: str = ""
    message: str = ""


def engine_jobs(jobs: Jobs, pools: Pools) -> list[EngineJob]:
    """The compilations that will give an engine."""
    found = []
    for job in jobs.unended(("compiler",)):
        request = compiler_pb2.CompileRequest()
        if not any_pb2.Any.FromString(job.spec).Unpack(request) or request.output == compiler_pb2.COMPILE_OUTPUT_TORCHSCRIPT:
            continue
        model = request.model.removeprefix("artifacts/")
        if pools.is_model(model):  # of a SINGLE_FILE nobody knows the graph yet
            found.append(EngineJob(name=job.name, pool=request.pool.removeprefix("pools/"), graph=pools.graph(model)))
    return found


def plan(deployments: Sequence[Deployment], pools: Pools, jobs: Jobs) -> list[PlannedEngine]:
    """By pool and graph. A deployment whose SINGLE_FILE is still being converted is not in it."""
    building = {(job.pool, job.graph): job.name for job in engine_jobs(jobs, pools)}
    groups: dict[tuple[str, str], list[Deployment]] = {}
    for deployment in deployments:
        if pools.is_model(deployment.model):
            groups.setdefault((deployment.pool, pools.graph(deployment.model)), []).append(deployment)
    return [_planned(groups[key], key[1], kind, pools, job=building.get(key, "")) for key in sorted(groups) for kind in pools.kinds(key[0])]


def engines_for(deployment: Deployment, kind: Fingerprint | None, pools: Pools) -> list[str]:
    """`artifacts/{digest}` of those that run its model on a kind of node of its pool, the fastest first."""
    if kind is None:
        return pools.engines_of_product(deployment.model, deployment.pool)
    return pools.engines(deployment.model, kind)


def _planned(group: Sequence[Deployment], graph: str, kind: Fingerprint | None, pools: Pools, *, job: str) -> PlannedEngine:
    pool, engines = group[0].pool, engines_for(group[0], kind, pools)
    problems = pools.state(pool).problems
    found = [problems[key] for one in group if (key := f"{one.name} {one.model}") in problems]
    if engines:
        state, job, found = server_pb2.ENGINE_STATE_THERE, "", []
    elif job:
        state = server_pb2.ENGINE_STATE_BEING_BUILT
    elif any(one.compile for one in group):
        state = server_pb2.ENGINE_STATE_TO_BE_BUILT
    else:
        state = server_pb2.ENGINE_STATE_NOT_WANTED
    return PlannedEngine(
        pool=pool, graph=graph, kind=kind, present=bool(kind and pools.reports(pool)), deployments=tuple(one.name for one in group),
        state=state, engine=next(iter(engines), ""), job=job, message=next(iter(found), ""),
    )  # fmt: skip
