"""What the reconciler asks of Serve, converter and compiler, and what a deployment's state says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from atelier.engines.fingerprint import Fingerprint
from atelier.errors import AtelierError, failed_precondition, unavailable
from atelier.pools import Pool
from atelier.server.deployments import Deployment
from atelier.server.messages import fingerprint_to_message
from atelier.server.pool import Pools
from atelier.server.reconciler import Application, ServeReconciler
from atelier.v1 import replica_pb2, server_pb2

MACHINE = Fingerprint(device="cpu", product="cpu-x86-64-v4", capability="avx2", torch="2.14.1", backends={"openvino": "2026.3"})
FOX = Deployment(id="fox", model="a" * 64, pool="local")


class FakeDeployments:
    def __init__(self, *deployments: Deployment) -> None:
        self.found = list(deployments)
        self.held: list[replica_pb2.ReplicaModel] = []

    def all(self) -> list[Deployment]:
        return self.found

    def update(self, changed: Deployment, *, etag: str) -> None:
        self.found = [changed if one.id == changed.id else one for one in self.found]

    def reports(self, pool: str) -> list[bytes]:
        report = replica_pb2.ReportRequest(fingerprint=fingerprint_to_message(MACHINE), models=self.held)
        return [report.SerializeToString()]


class FakePools(Pools):
    """Every model is of one graph, and a MODEL when its digest begins with `a`."""

    def __init__(self, deployments: Any) -> None:
        super().__init__(deployments=deployments, catalog=None, labels={"local": "cpu"})  # type: ignore[arg-type]
        self.built: list[str] = []

    def is_model(self, digest: str) -> bool:
        return digest.startswith("a")

    def graph(self, model: str) -> str:
        return "graph"

    def engines(self, model: str, fingerprint: Fingerprint) -> list[str]:
        return self.built


class FakeCalls:
    def __init__(self) -> None:
        self.compiled: list[tuple[str, str]] = []
        self.error: AtelierError | None = None
        self.model = ""

    async def convert(self, digest: str) -> str:
        if self.error:
            raise self.error
        return self.model

    async def compile_for(self, model: str, pool: str, fingerprint: str) -> str:
        self.compiled.append((model, fingerprint))
        return "jobs/one"

    async def check(self, job: str) -> None:
        if self.error:
            raise self.error


class FakeCluster:
    host = "127.0.0.1"
    http_port, grpc_port = 1, 2

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"status": "RUNNING", "message": ""}
        self.puts: list[dict[str, Any]] = []

    def applications(self) -> dict[str, Any]:
        return {"applications": {"local": self.state} if self.state else {}}

    def put_applications(self, config: dict[str, Any]) -> None:
        self.puts.append(config)


class Setting:
    def __init__(self, *deployments: Deployment) -> None:
        self.deployments = FakeDeployments(*deployments)
        self.pools = FakePools(self.deployments)
        self.calls, self.cluster = FakeCalls(), FakeCluster()
        application = Application(pool=Pool(name="local", num_cpus=2), settings_path="/replica.json")
        self.reconciler = ServeReconciler(
            cluster=self.cluster, applications=[application], deployments=self.deployments, pools=self.pools, calls=self.calls
        )  # type: ignore[arg-type]

    def hold(self, engine: server_pb2.DeploymentEngine.ValueType) -> None:
        self.deployments.held = [replica_pb2.ReplicaModel(model=f"artifacts/{FOX.model}", engine=engine)]


async def test_an_engine_is_asked_for_once_for_all_models_of_a_graph() -> None:
    setting = Setting(FOX, replace(FOX, id="bear", model="a" + "b" * 63))
    for _ in range(3):
        await setting.reconciler._tick()
    assert setting.calls.compiled == [(FOX.model, MACHINE.key)]
    setting.pools.built = ["artifacts/e"]
    setting.calls.error = failed_precondition("PARITY_FAILED", "is of no interest any more")
    await setting.reconciler._tick()
    assert setting.pools.problems == {}


@pytest.mark.parametrize(("eager", "state"), [(True, server_pb2.DEPLOYMENT_STATE_READY), (False, server_pb2.DEPLOYMENT_STATE_FAILED)])
async def test_a_compilation_that_failed_is_told(eager: bool, state: int) -> None:
    deployment = replace(FOX, serve_eager=eager)
    setting = Setting(deployment)
    setting.hold(server_pb2.DEPLOYMENT_ENGINE_EAGER)
    await setting.reconciler._tick()
    assert "while its engine is built" in setting.pools.status(deployment).message or not eager
    setting.calls.error = failed_precondition("PARITY_FAILED", "jobs/one failed: bf16 does not agree")
    await setting.reconciler._tick()
    status = setting.pools.status(deployment)
    assert (status.state, "bf16 does not agree" in status.message) == (state, True)


async def test_a_single_file_that_cannot_be_converted_fails_its_deployment_and_not_for_a_converter_that_is_away() -> None:
    file = replace(FOX, model="f" * 64)
    setting = Setting(file)
    setting.calls.error = unavailable("SERVICE_UNAVAILABLE", "Converter does not answer")
    await setting.reconciler._tick()
    assert setting.pools.status(file).state == server_pb2.DEPLOYMENT_STATE_PENDING
    setting.calls.error = failed_precondition("NOT_CONVERTIBLE", "jobs/two failed: no rule maps x")
    await setting.reconciler._tick()
    status = setting.pools.status(file)
    assert (status.state, "no rule maps x" in status.message) == (server_pb2.DEPLOYMENT_STATE_FAILED, True)
    other = setting.pools.status(replace(file, model="e" * 64))
    assert other.state == server_pb2.DEPLOYMENT_STATE_PENDING, "the same deployment was updated to another file"
    setting.calls.error, setting.calls.model = None, "a" * 64
    await setting.reconciler._tick()
    assert setting.deployments.found[0].model == "a" * 64 and setting.pools.problems == {}


def test_an_application_that_is_missing_is_put_again_and_one_that_does_not_start_is_built_anew() -> None:
    setting = Setting()
    setting.reconciler._look(again=True)
    assert len(setting.cluster.puts) == 1, "what is there may be of another version"
    setting.reconciler._look(again=False)
    assert len(setting.cluster.puts) == 1
    setting.cluster.state = {}
    setting.reconciler._look(again=False)
    setting.cluster.state = {"status": "DEPLOY_FAILED", "message": 'Traceback (most recent call last): File "/srv/x.py"'}
    setting.reconciler._look(again=False)
    setting.reconciler._look(again=True)
    builds = [put["applications"][0]["args"]["build"] for put in setting.cluster.puts]
    assert builds == [0, 0, 1]
    assert "Traceback" not in setting.pools.messages["local"] and "does not start" in setting.pools.messages["local"]


def test_replicas_are_pinned_by_both_labels() -> None:
    (deployment,) = Application(pool=Pool(name="fast", gpu="NVIDIA-A10", num_cpus=1), settings_path="").schema()["deployments"]
    assert deployment["ray_actor_options"]["label_selector"] == {"atelier.dev/pool": "fast", "atelier.dev/gpu": "NVIDIA-A10"}
    assert deployment["max_queued_requests"] > 0


def test_a_call_may_wait_for_weights_only_where_eager_serves() -> None:
    setting = Setting(FOX)
    assert setting.pools.status(FOX).loading
    assert not setting.pools.status(replace(FOX, serve_eager=False)).loading
