"""Which engines the deployments need, and where each stands."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_pools import FOX, MACHINE, FakeDeployments, FakeJobs, FakePools, FakeStates, engine_job

from atelier.pools import Pool
from atelier.server.plan import PlannedEngine, plan
from atelier.server.pool_messages import planned_to_message
from atelier.server.pool_states import PoolState
from atelier.v1 import server_pb2

BEAR = replace(FOX, id="bear", model="a" + "b" * 63, compile=False)


class Setting:
    def __init__(self) -> None:
        self.deployments, self.states, self.jobs = FakeDeployments(FOX, BEAR), FakeStates(), FakeJobs()
        self.pools = FakePools(self.deployments, self.states, [Pool(name="local")])

    def plan(self) -> list[PlannedEngine]:
        return plan(self.deployments.all(), self.pools, self.jobs)


@pytest.fixture
def setting() -> Setting:
    return Setting()


def test_deployments_of_a_graph_need_one_engine_on_a_kind_of_node(setting: Setting) -> None:
    (planned,) = setting.plan()
    assert (planned.pool, planned.graph, planned.kind, planned.present) == ("local", "graph", MACHINE, True)
    assert planned.deployments == ("deployments/fox", "deployments/bear")
    assert planned.state == server_pb2.ENGINE_STATE_TO_BE_BUILT


def test_an_engine_that_is_there_is_named_and_no_trouble_of_before(setting: Setting) -> None:
    setting.states.found["local"] = PoolState(problems={f"deployments/fox {FOX.model}": "parity failed"})
    (planned,) = setting.plan()
    assert planned.message == "parity failed"
    setting.pools.built = ["artifacts/fastest", "artifacts/other"]
    (planned,) = setting.plan()
    assert (planned.state, planned.engine, planned.message) == (server_pb2.ENGINE_STATE_THERE, "artifacts/fastest", "")


def test_one_that_is_being_built_names_the_job(setting: Setting) -> None:
    setting.jobs.found = [engine_job(model=FOX.model, pool="local")]
    (planned,) = setting.plan()
    assert (planned.state, planned.job) == (server_pb2.ENGINE_STATE_BEING_BUILT, "jobs/compiling")


def test_one_that_nobody_asks_for_is_not_wanted(setting: Setting) -> None:
    setting.deployments.found = [BEAR]
    (planned,) = setting.plan()
    assert planned.state == server_pb2.ENGINE_STATE_NOT_WANTED


def test_a_pool_at_zero_is_planned_by_its_last_replicas_and_one_without_any_by_its_product(setting: Setting) -> None:
    setting.deployments.fresh = False
    (planned,) = setting.plan()
    assert (planned.kind, planned.present) == (MACHINE, False)
    setting.deployments.known = False
    (planned,) = setting.plan()
    message = planned_to_message(planned)
    assert (planned.kind, message.HasField("fingerprint"), message.present) == (None, False, False)


def test_a_single_file_is_planned_when_it_is_a_model(setting: Setting) -> None:
    setting.deployments.found = [replace(FOX, model="f" * 64)]
    setting.jobs.found = [engine_job(model="f" * 64, pool="local")]
    assert setting.plan() == []
