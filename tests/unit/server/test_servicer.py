"""Deployments and pools, asked for by the front door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fake_pools import MACHINE, FakeJobs, job

from atelier.artifacts.catalog import Catalog
from atelier.artifacts.manifest import File, Kind, Manifest, hash_file
from atelier.artifacts.store import Store
from atelier.errors import AtelierError, Status
from atelier.ledger import Database, now
from atelier.pools import Pool
from atelier.rpc import auth, server
from atelier.rpc.channel import aio_channel
from atelier.rpc.status import from_call
from atelier.server.deployments import DeploymentLedger
from atelier.server.messages import fingerprint_to_message
from atelier.server.nodes import PoolNode
from atelier.server.pool import Pools
from atelier.server.pool_states import PoolState, PoolStateRow, PoolStates
from atelier.server.servicer import ServerServicer
from atelier.v1 import replica_pb2, server_pb2, server_pb2_grpc

POOLS = [
    Pool(name="fast", gpu="NVIDIA-A10", min_replicas=0, max_replicas=2),
    Pool(name="slow", serve_eager=False),
    Pool(name="jobs", gpu="NVIDIA-H100-80GB-HBM3", min_replicas=0, max_replicas=0),
]


class Setting:
    def __init__(self, database: Database, folder: Path, pools: list[Pool]) -> None:
        self.deployments, self.states, self.jobs = DeploymentLedger(database), PoolStates(database), FakeJobs()
        self.catalog = Catalog(store=Store.open("memory://"), database=database)
        (folder / "x").write_text("x")
        file = File(path="unet/x", size=1, sha256=hash_file(folder / "x"))
        self.catalog.store.put_blob(folder / "x", file)
        self.model = self.catalog.commit(Manifest(kind=Kind.MODEL, files=(file,)), tags=["base"]).name
        pools_there = Pools(pools=pools, deployments=self.deployments, catalog=self.catalog, states=self.states)
        self.servicer: Any = ServerServicer(
            deployments=self.deployments, pools=pools_there, catalog=self.catalog, jobs=self.jobs, changed=lambda: None
        )  # type: ignore[arg-type]
        self.stub: Any = None

    async def create(self, **fields: Any) -> server_pb2.Deployment:
        deployment = server_pb2.Deployment(**{"model": "base", **fields})
        try:
            return await self.stub.CreateDeployment(server_pb2.CreateDeploymentRequest(deployment_id="fox", deployment=deployment))
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from None

    async def pools(self) -> dict[str, server_pb2.Pool]:
        return {pool.name: pool for pool in (await self.stub.ListPools(server_pb2.ListPoolsRequest())).pools}


@pytest.fixture
def pools() -> list[Pool]:
    return POOLS


@pytest.fixture
async def setting(database: Database, tmp_path: Path, pools: list[Pool]) -> AsyncIterator[Setting]:
    made = Setting(database, tmp_path, pools)
    descriptor = server_pb2.DESCRIPTOR.services_by_name["Server"]
    service = server.Service(descriptor=descriptor, add=server_pb2_grpc.add_ServerServicer_to_server, servicer=made.servicer)
    serving = server.serving("127.0.0.1:0", [service], authorize=auth.allow_all, grace_seconds=0.2)
    async with serving as bound, aio_channel(f"127.0.0.1:{bound.port}") as channel:
        made.stub = server_pb2_grpc.ServerStub(channel)
        yield made


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ("", "must be set where there is not exactly one; there are: pools/fast, pools/slow"),
        ("pools/jobs", "pools/jobs has no replicas and takes jobs only; there serve: pools/fast, pools/slow"),
        ("pools/none", "there is no 'pools/none'"),
        ("jobs", "there is no 'jobs'"),
    ],
)
async def test_a_deployment_asks_for_a_pool_that_serves(setting: Setting, pool: str, words: str) -> None:
    with pytest.raises(AtelierError) as caught:
        await setting.create(pool=pool)
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert [(one.field, words in one.description) for one in caught.value.violations] == [("deployment.pool", True)]


@pytest.mark.parametrize("pools", [[POOLS[0], POOLS[2]]])
async def test_the_only_pool_that_serves_need_not_be_named(setting: Setting) -> None:
    assert (await setting.create()).pool == "pools/fast"


@pytest.mark.parametrize(
    ("pool", "fields", "eager"),
    [("fast", {}, True), ("slow", {}, False), ("slow", {"serve_eager": True}, True), ("fast", {"serve_eager": False}, False)],
)
async def test_what_a_deployment_does_not_say_its_pool_says(setting: Setting, pool: str, fields: Any, eager: bool) -> None:
    assert (await setting.create(pool=f"pools/{pool}", **fields)).serve_eager is eager


async def test_pools_tell_their_bounds_nodes_and_what_waits(setting: Setting) -> None:
    node = PoolNode(name="pool-fast-x", reason="0/3 nodes are available")
    setting.states.put("fast", PoolState(message="its replica is being started", in_place=True, target=1, nodes=(node,)))
    setting.jobs.found = [
        job(id="j1", pool="jobs", waits_for="no H100 is free"),
        job(id="j2", pool="fast"),
        job(id="j3", pool="fast", waits_for="no A10 is free"),
    ]
    report = replica_pb2.ReportRequest(
        pool="pools/slow", replica="r1", fingerprint=fingerprint_to_message(MACHINE), error="a broken engine"
    )
    setting.deployments.report("r1", "slow", report.SerializeToString())
    found = await setting.pools()
    assert list(found) == ["pools/fast", "pools/jobs", "pools/slow"]
    fast = found["pools/fast"]
    assert (fast.gpu, fast.min_replicas, fast.max_replicas, fast.target_replicas, fast.replicas) == ("NVIDIA-A10", 0, 2, 1, 0)
    assert [(one.name, one.ready, one.reason) for one in fast.nodes] == [("pool-fast-x", False, "0/3 nodes are available")]
    assert [(one.job, one.reason) for one in fast.waiting_jobs] == [("jobs/j3", "no A10 is free")]
    assert fast.message == "its replica is being started"
    assert [one.job for one in found["pools/jobs"].waiting_jobs] == ["jobs/j1"] and found["pools/jobs"].max_replicas == 0
    assert (found["pools/slow"].replicas, found["pools/slow"].message) == (1, "a broken engine")


async def test_a_deployment_whose_pool_has_gone_says_so(setting: Setting, database: Database) -> None:
    await setting.create(pool="pools/fast")
    pools = Pools(pools=POOLS[1:], deployments=setting.deployments, catalog=setting.catalog, states=setting.states)
    status = pools.status(setting.deployments.get("deployments/fox"))
    assert status.state == server_pb2.DEPLOYMENT_STATE_FAILED and "undeploy it" in status.message


def test_states_are_kept_for_all_processes_until_they_are_forgotten(database: Database) -> None:
    state = PoolState(
        message="m", in_place=True, target=2, nodes=(PoolNode(name="a", ready=True),), gives_to="jobs/j1", most=1, problems={"a b": "c"}
    )
    PoolStates(database).put("fast", PoolState(target=1))
    PoolStates(database).put("fast", state)
    assert PoolStates(database).get("fast") == state
    assert PoolStates(database).get("slow") == PoolState()
    PoolStates(database).forget()
    assert PoolStates(database).get("fast") == PoolState()


def test_a_state_that_a_newer_version_has_written_is_read(database: Database) -> None:
    content = {"target": 3, "colour": "red", "nodes": [{"name": "a", "weight": 7}]}
    with database.transaction() as session:
        session.add(PoolStateRow(pool="fast", content=content, time=now()))
    assert PoolStates(database).get("fast") == PoolState(target=3, nodes=(PoolNode(name="a"),))


def test_the_last_reports_of_a_pool_are_those_of_replicas_that_were_there_together(database: Database) -> None:
    deployments = DeploymentLedger(database)
    assert deployments.last_reports("fast") == []
    for replica in ("r1", "r2"):
        deployments.report(replica, "fast", replica.encode())
    deployments.report("r3", "slow", b"r3")
    assert deployments.last_reports("fast") == [b"r1", b"r2"] == deployments.reports("fast")
