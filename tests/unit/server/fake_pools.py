"""Pools, deployments and jobs that are what a test says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from google.protobuf import any_pb2

from atelier.engines.fingerprint import Fingerprint
from atelier.jobs.job import Job, State
from atelier.ledger import now
from atelier.pools import Pool
from atelier.server.deployments import Deployment
from atelier.server.messages import fingerprint_to_message
from atelier.server.pool import Pools
from atelier.server.pool_states import PoolState
from atelier.v1 import compiler_pb2, replica_pb2

MACHINE = Fingerprint(device="cpu", product="cpu-x86-64-v4", capability="avx2", torch="2.14.1", backends={"openvino": "2026.3"})
FOX = Deployment(id="fox", model="a" * 64, pool="local")


class FakeDeployments:
    """`fresh`: replicas of `MACHINE` report; `known`: some have reported before."""

    def __init__(self, *deployments: Deployment) -> None:
        self.found = list(deployments)
        self.held: list[replica_pb2.ReplicaModel] = []
        self.fresh = self.known = True

    def all(self) -> list[Deployment]:
        return self.found

    def update(self, changed: Deployment, *, etag: str) -> None:
        self.found = [changed if one.id == changed.id else one for one in self.found]

    def reports(self, pool: str) -> list[bytes]:
        return self.last_reports(pool) if self.fresh else []

    def last_reports(self, pool: str) -> list[bytes]:
        report = replica_pb2.ReportRequest(fingerprint=fingerprint_to_message(MACHINE), models=self.held)
        return [report.SerializeToString()] if self.known else []


class FakeStates:
    def __init__(self) -> None:
        self.found: dict[str, PoolState] = {}
        self.puts = 0

    def get(self, pool: str) -> PoolState:
        return self.found.get(pool, PoolState())

    def put(self, pool: str, state: PoolState) -> None:
        self.found[pool] = state
        self.puts += 1


class FakePools(Pools):
    """Every model is of one graph, and a MODEL when its digest begins with `a`."""

    def __init__(self, deployments: Any, states: Any, pools: Sequence[Pool]) -> None:
        super().__init__(pools=pools, deployments=deployments, catalog=None, states=states)  # type: ignore[arg-type]
        self.built: list[str] = []

    def is_model(self, digest: str) -> bool:
        return digest.startswith("a")

    def graph(self, model: str) -> str:
        return "graph"

    def engines(self, model: str, fingerprint: Fingerprint) -> list[str]:
        return self.built

    def engines_of_product(self, model: str, pool: str) -> list[str]:
        return self.built

    def difference(self, engine: str, kind: Fingerprint) -> str:
        return "driver 580 (found none)"


class FakeJobs:
    def __init__(self) -> None:
        self.found: list[Job] = []

    def unended(self, services: Sequence[str]) -> list[Job]:
        return [job for job in self.found if job.service in services]


class FakeKeeper:
    def __init__(self) -> None:
        self.jobs = FakeJobs()


def job(**fields: Any) -> Job:
    """A job that has waited for a minute."""
    plain: dict[str, Any] = {
        "id": "j1", "service": "trainer", "method": "Train", "spec": b"", "state": State.PENDING, "attempt": 0, "failures": 0,
        "create_time": now() - timedelta(minutes=1), "start_time": None, "end_time": None, "heartbeat_time": None, "last_sequence": 0,
        "progress": b"", "error": b"", "outputs": (), "inputs": (), "reads": (), "plan": (), "tags": (), "processes": 1, "pool": "",
        "waits_for": "",
    }  # fmt: skip
    return Job(**plain | fields)


def engine_job(*, model: str, pool: str, torchscript: bool = False) -> Job:
    output = compiler_pb2.COMPILE_OUTPUT_TORCHSCRIPT if torchscript else compiler_pb2.COMPILE_OUTPUT_ENGINE
    spec = any_pb2.Any()
    spec.Pack(compiler_pb2.CompileRequest(model=f"artifacts/{model}", pool=f"pools/{pool}", output=output))
    return replace(job(), id="compiling", service="compiler", pool=pool, spec=spec.SerializeToString())
