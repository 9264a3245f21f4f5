"""What the reconciler asks of converter and compiler, and what a deployment's state says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_pools import FOX, MACHINE, FakeDeployments, FakeKeeper, FakePools, FakeStates, engine_job

from atelier.errors import AtelierError, failed_precondition, unavailable
from atelier.lease import Lease
from atelier.ledger import Database
from atelier.migrations import migrate
from atelier.pools import Pool
from atelier.server.deployments import Deployment
from atelier.server.pool_states import PoolState
from atelier.server.reconciler import ServeReconciler
from atelier.v1 import replica_pb2, server_pb2


class FakeCalls:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.error: AtelierError | None = None
        self.model = ""
        self.engine = ""

    async def convert(self, digest: str) -> str:
        if self.error:
            raise self.error
        return self.model

    async def build(self, model: str, pool: str, fingerprint: str) -> str:
        self.asked.append((model, pool, fingerprint))
        if self.error:
            raise self.error
        return self.engine


class Setting:
    def __init__(self, *deployments: Deployment) -> None:
        self.deployments, self.states = FakeDeployments(*deployments), FakeStates()
        self.pools = FakePools(self.deployments, self.states, [Pool(name="local", num_cpus=2)])
        self.calls, self.keeper = FakeCalls(), FakeKeeper()
        self.reconciler = ServeReconciler(keeper=self.keeper, deployments=self.deployments, pools=self.pools, calls=self.calls)  # type: ignore[arg-type]

    async def tick(self) -> dict[str, dict[str, str]]:
        problems = await self.reconciler._tick()
        self.states.found["local"] = PoolState(problems=problems.get("local", {}))
        return problems

    def hold(self, engine: server_pb2.DeploymentEngine.ValueType) -> None:
        self.deployments.held = [replica_pb2.ReplicaModel(model=f"artifacts/{FOX.model}", engine=engine)]


async def test_an_engine_is_asked_for_with_one_model_of_a_graph() -> None:
    setting = Setting(FOX, replace(FOX, id="bear", model="a" + "b" * 63))
    for _ in range(3):
        await setting.tick()
    assert set(setting.calls.asked) == {(FOX.model, "local", MACHINE.key)}
    setting.pools.built = ["artifacts/e"]
    setting.calls.error = failed_precondition("PARITY_FAILED", "is of no interest any more")
    assert await setting.tick() == {}


async def test_another_model_asks_where_the_one_that_asked_is_deployed_no_more() -> None:
    bear = replace(FOX, id="bear", model="a" + "b" * 63)
    setting = Setting(FOX, bear)
    await setting.tick()
    setting.deployments.found = [bear]
    await setting.tick()
    assert setting.calls.asked[-1] == (bear.model, "local", MACHINE.key)


async def test_an_engine_that_is_deleted_is_asked_for_anew() -> None:
    setting = Setting(FOX)
    setting.pools.built = ["artifacts/e"]
    await setting.tick()
    assert setting.calls.asked == []
    setting.pools.built = []
    await setting.tick()
    assert setting.calls.asked == [(FOX.model, "local", MACHINE.key)]


async def test_nothing_is_asked_for_while_somebody_else_has_it_compiled() -> None:
    setting = Setting(FOX)
    setting.keeper.jobs.found = [engine_job(model=FOX.model, pool="other"), engine_job(model=FOX.model, pool="local", torchscript=True)]
    await setting.tick()
    assert setting.calls.asked, "on another pool, and for others"
    setting = Setting(FOX)
    setting.keeper.jobs.found = [engine_job(model=FOX.model, pool="local")]
    await setting.tick()
    assert setting.calls.asked == []


async def test_an_engine_is_built_for_what_the_last_replicas_were_and_for_the_product_where_there_was_none() -> None:
    setting = Setting(FOX)
    setting.deployments.fresh = False
    await setting.tick()
    assert setting.calls.asked == [(FOX.model, "local", MACHINE.key)]
    setting = Setting(FOX)
    setting.deployments.fresh = setting.deployments.known = False
    for state in (PoolState(), PoolState(in_place=True, target=1)):
        setting.states.found["local"] = state
        await setting.tick()
        assert setting.calls.asked == [], "a replica is about to come"
    setting.states.found["local"] = PoolState(in_place=True)
    await setting.tick()
    assert setting.calls.asked == [(FOX.model, "local", "")]


async def test_an_engine_that_fits_no_node_is_told_where_there_are_nodes() -> None:
    setting = Setting(FOX)
    setting.calls.engine = "e" * 64
    (problem,) = (await setting.tick())["local"].values()
    assert "driver 580 (found none)" in problem
    setting.deployments.fresh = False
    assert await setting.tick() == {}, "the next replica may be what it was built for"


@pytest.mark.parametrize(("eager", "state"), [(True, server_pb2.DEPLOYMENT_STATE_READY), (False, server_pb2.DEPLOYMENT_STATE_FAILED)])
async def test_a_compilation_that_failed_is_told(eager: bool, state: int) -> None:
    deployment = replace(FOX, serve_eager=eager)
    setting = Setting(deployment)
    setting.hold(server_pb2.DEPLOYMENT_ENGINE_EAGER)
    await setting.tick()
    assert "while its engine is built" in setting.pools.status(deployment).message or not eager
    setting.calls.error = failed_precondition("PARITY_FAILED", "jobs/one failed: bf16 does not agree")
    await setting.tick()
    status = setting.pools.status(deployment)
    assert (status.state, "bf16 does not agree" in status.message) == (state, True)


async def test_a_single_file_that_cannot_be_converted_fails_its_deployment_and_not_for_a_converter_that_is_away() -> None:
    file = replace(FOX, model="f" * 64)
    setting = Setting(file)
    setting.calls.error = unavailable("SERVICE_UNAVAILABLE", "Converter does not answer")
    await setting.tick()
    assert setting.pools.status(file).state == server_pb2.DEPLOYMENT_STATE_PENDING
    setting.calls.error = failed_precondition("NOT_CONVERTIBLE", "jobs/two failed: no rule maps x")
    await setting.tick()
    status = setting.pools.status(file)
    assert (status.state, "no rule maps x" in status.message) == (server_pb2.DEPLOYMENT_STATE_FAILED, True)
    other = setting.pools.status(replace(file, model="e" * 64))
    assert other.state == server_pb2.DEPLOYMENT_STATE_PENDING, "the same deployment was updated to another file"
    setting.calls.error, setting.calls.model = None, "a" * 64
    assert await setting.tick() == {}
    assert setting.deployments.found[0].model == "a" * 64


def test_a_call_may_wait_for_weights_only_where_eager_serves() -> None:
    setting = Setting(FOX)
    assert setting.pools.status(FOX).waits
    assert not setting.pools.status(replace(FOX, serve_eager=False)).waits


@pytest.mark.parametrize(
    ("state", "changes", "expected"),
    [
        (PoolState(), {}, (server_pb2.DEPLOYMENT_STATE_PENDING, False)),
        (PoolState(in_place=True), {}, (server_pb2.DEPLOYMENT_STATE_READY, True)),
        (PoolState(in_place=True, target=1), {}, (server_pb2.DEPLOYMENT_STATE_PENDING, True)),
        (PoolState(in_place=True), {"serve_eager": False}, (server_pb2.DEPLOYMENT_STATE_PENDING, False)),
        (PoolState(in_place=True), {"pool": "gone"}, (server_pb2.DEPLOYMENT_STATE_FAILED, False)),
    ],
)
def test_a_call_waits_for_a_replica_where_the_application_is_in_place(state: PoolState, changes: dict[str, Any], expected: Any) -> None:
    setting = Setting(FOX)
    setting.deployments.fresh = False
    setting.states.found["local"] = state
    status = setting.pools.status(replace(FOX, **changes))
    assert (status.state, status.waits) == expected


def test_at_zero_a_deployment_that_never_serves_eager_answers_by_an_engine_for_what_the_last_replicas_were() -> None:
    setting = Setting(FOX)
    setting.deployments.fresh = False
    setting.states.found["local"] = PoolState(in_place=True)
    setting.pools.built = ["artifacts/e"]
    assert setting.pools.status(replace(FOX, serve_eager=False)).waits


class CountingKeeper(FakeKeeper):
    """Knows how often it was asked to look."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.looks = 0, 0

    def begin(self) -> None:
        self.begun += 1

    def look(self) -> None:
        self.looks += 1

    def write(self, problems: Any) -> None:
        return


async def test_of_several_processes_one_looks_after_the_pools_and_another_when_it_ends(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'ledger.db'}")
    migrate(database)
    keepers = [CountingKeeper(), CountingKeeper()]
    processes = []
    for keeper in keepers:
        setting = Setting(FOX)
        setting.reconciler.keeper, setting.reconciler.lease = keeper, Lease(database=database, name="serve", term_seconds=1.0)  # type: ignore[assignment]
        processes.append(setting.reconciler)
    async with processes[0].running():
        await until(lambda: keepers[0].looks > 0)
        async with processes[1].running():
            await asyncio.sleep(0.5)
            assert keepers[1].begun == 0
    async with processes[1].running():
        await until(lambda: keepers[1].looks > 0)
    assert [keeper.begun for keeper in keepers] == [1, 1]
    database.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)
