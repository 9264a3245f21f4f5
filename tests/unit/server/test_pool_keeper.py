"""What is put into Serve's config, how nodes follow, and what is told of pools."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from fake_pools import FakeJobs, FakeStates, job

from atelier.pools import Pool
from atelier.server.applications import Application
from atelier.server.nodes import PoolNode
from atelier.server.pool_keeper import AGAIN_SECONDS, PoolKeeper

FAST = Pool(name="fast", min_replicas=0, max_replicas=2, num_cpus=1, deployment="atelier-pool-fast")
NO_ROOM = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


class FakeCluster:
    """A Serve that tells what a test says."""

    host = "127.0.0.1"
    http_port, grpc_port = 1, 2

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.puts: list[dict[str, Any]] = []
        self.away = False

    def applications(self) -> dict[str, Any]:
        if self.away:
            raise OSError("connection refused")
        return {"applications": self.found, "proxies": {}}

    def put_applications(self, config: dict[str, Any]) -> None:
        self.puts.append(config)

    def runs(self, target: int, *, status: str = "RUNNING", message: str = "", replicas: Sequence[str] = ()) -> None:
        deployment = {"target_num_replicas": target, "replicas": [{"state": "RUNNING", "node_ip": one} for one in replicas]}
        self.found["fast"] = {"status": status, "message": message, "deployments": {"Replica": deployment}}

    def maxima(self) -> list[list[int]]:
        """Of each PUT's applications."""
        return [[one["deployments"][0]["autoscaling_config"]["max_replicas"] for one in put["applications"]] for put in self.puts]


class FakeNodes:
    """Nodes that come and go when a test says so."""

    def __init__(self) -> None:
        self.there: list[PoolNode] | None = []
        self.said = ""
        self.scaled: list[int] = []
        self.away = False

    @contextmanager
    def running(self, changed: Callable[[], None]) -> Iterator[None]:
        yield

    def of(self, pool: str) -> list[PoolNode] | None:
        return self.there

    def trouble(self, pool: str) -> str:
        return self.said

    def scale(self, pool: str, count: int) -> None:
        if self.away:
            raise OSError("the API server is away")
        self.scaled.append(count)


class Setting:
    def __init__(self, pool: Pool = FAST) -> None:
        self.cluster, self.nodes, self.states, self.jobs, self.seconds = FakeCluster(), FakeNodes(), FakeStates(), FakeJobs(), 0.0
        self.pool = pool
        self.keeper = self.another()

    def another(self) -> PoolKeeper:
        """That of another process, which goes on from the same ledger."""
        keeper = PoolKeeper(
            cluster=self.cluster, applications=[Application(pool=self.pool, settings_path="/replica.json")], states=self.states,
            jobs=self.jobs, nodes=self.nodes, clock=lambda: self.seconds,
        )  # type: ignore[arg-type]  # fmt: skip
        keeper.begin()
        return keeper

    def look(self, *, later: float = 2.0) -> None:
        self.seconds += later
        self.keeper.look()
        self.keeper.write({})

    @property
    def state(self) -> Any:
        return self.states.get("fast")


@pytest.fixture
def setting() -> Setting:
    return Setting()


def ready(*addresses: str) -> list[PoolNode]:
    return [PoolNode(name=f"node-{address}", address=address, ready=True) for address in addresses]


def waits(**fields: Any) -> Any:
    return job(**{"pool": "fast", "waits_for": NO_ROOM, **fields})


def test_an_application_is_put_once_and_again_when_it_is_missing_or_another_process_takes_over(setting: Setting) -> None:
    setting.look()
    setting.cluster.runs(0)
    for _ in range(3):
        setting.look()
    assert len(setting.cluster.puts) == 1
    setting.cluster.found.clear()
    setting.look()
    assert len(setting.cluster.puts) == 2, "a Ray that began anew"
    setting.cluster.runs(0)
    setting.keeper = setting.another()
    setting.look()
    assert len(setting.cluster.puts) == 3, "what is there may be of another version"


def test_one_that_does_not_start_is_built_anew_each_minute_and_its_traceback_stays_in_the_log(setting: Setting) -> None:
    setting.cluster.runs(1, status="DEPLOY_FAILED", message='Traceback (most recent call last): File "/srv/x.py"')
    for _ in range(3):
        setting.look(later=AGAIN_SECONDS)
    assert [put["applications"][0]["args"]["build"] for put in setting.cluster.puts] == [0, 1]
    assert "Traceback" not in setting.state.message and "does not start" in setting.state.message
    assert not setting.state.in_place


def test_a_ray_that_does_not_answer_is_told_and_nothing_is_done(setting: Setting) -> None:
    setting.cluster.runs(2)
    setting.look()
    setting.cluster.away, setting.nodes.there = True, []
    before = list(setting.nodes.scaled)
    setting.look()
    assert (setting.state.in_place, setting.nodes.scaled) == (False, before)
    assert "Ray does not answer" in setting.state.message
    setting.cluster.away = False
    setting.look()
    assert setting.state.in_place


def test_replicas_are_pinned_by_both_labels_and_serve_scales_them_by_the_pools_values() -> None:
    pool = Pool(name="fast", gpu="NVIDIA-A10", num_cpus=1, min_replicas=0, max_replicas=3, downscale_to_zero_delay_seconds=7)
    (deployment,) = Application(pool=pool, settings_path="").schema()["deployments"]
    assert deployment["ray_actor_options"]["label_selector"] == {"atelier.dev/pool": "fast", "atelier.dev/gpu": "NVIDIA-A10"}
    assert deployment["ray_actor_options"]["num_gpus"] == 1
    assert deployment["max_queued_requests"] > 0
    scale = deployment["autoscaling_config"]
    assert (scale["min_replicas"], scale["max_replicas"], scale["downscale_to_zero_delay_s"]) == (0, 3, 7)
    assert "initial_replicas" not in scale and "num_replicas" not in deployment


def test_a_pool_at_zero_gets_a_node_to_be_built_on_and_then_follows(setting: Setting) -> None:
    setting.look()
    setting.nodes.there = ready("10.0.0.1")
    setting.cluster.found["fast"] = {"status": "DEPLOYING", "message": "", "deployments": {}}
    setting.look()
    assert setting.nodes.scaled == [1] and not setting.state.in_place
    setting.cluster.runs(0)
    setting.nodes.there = [PoolNode(name="node", address="10.0.0.1")]
    setting.look()
    assert setting.nodes.scaled == [1, 0] and setting.state.in_place
    setting.nodes.there = []
    setting.look()
    assert "while nobody calls" in setting.state.message
    setting.cluster.runs(2)
    setting.look()
    assert setting.nodes.scaled == [1, 0, 2] and setting.state.target == 2


def test_a_change_of_the_config_at_zero_starts_no_node_but_a_build_that_lasts_does(setting: Setting) -> None:
    setting.cluster.runs(0)
    setting.look()
    setting.cluster.runs(0, status="DEPLOYING")
    setting.look()
    setting.cluster.runs(0)
    setting.look()
    assert setting.nodes.scaled == [0]
    setting.cluster.runs(0, status="DEPLOYING")
    setting.look()
    setting.look()
    assert setting.nodes.scaled == [0, 1]


def test_a_number_that_stands_is_not_set_again_but_one_that_does_not_come_about_is_now_and_then(setting: Setting) -> None:
    setting.cluster.runs(1, replicas=["10.0.0.1"])
    setting.nodes.there = ready("10.0.0.1")
    for _ in range(3):
        setting.look()
    assert setting.nodes.scaled == [1]
    setting.nodes.there = []
    setting.look()
    assert setting.nodes.scaled == [1]
    setting.look(later=AGAIN_SECONDS)
    assert setting.nodes.scaled == [1, 1]


def test_an_api_server_that_is_away_is_another_try(setting: Setting) -> None:
    setting.cluster.runs(1)
    setting.nodes.away = True
    setting.look()
    assert setting.state.in_place
    setting.nodes.away = False
    setting.look()
    assert setting.nodes.scaled == [1]
    setting.nodes.there = None
    setting.cluster.runs(2)
    setting.look()
    assert setting.nodes.scaled == [1], "what is not known cannot be followed"


def test_nodes_of_others_are_told_and_left_alone() -> None:
    setting = Setting(FAST.model_copy(update={"deployment": ""}))
    setting.cluster.runs(2)
    setting.nodes.there = [PoolNode(name="node", reason="ImagePullBackOff: no such image")]
    setting.look()
    assert setting.nodes.scaled == []
    assert "node: ImagePullBackOff" in setting.state.message and setting.state.nodes == tuple(setting.nodes.there)


def test_nodes_that_cannot_be_made_are_told(setting: Setting) -> None:
    setting.cluster.runs(1)
    setting.nodes.said = "exceeded quota: few"
    setting.look()
    assert "no node can be made: exceeded quota: few" in setting.state.message


def test_a_state_is_written_when_it_changes(setting: Setting) -> None:
    setting.cluster.runs(0)
    for _ in range(3):
        setting.look()
    assert setting.states.puts == 1
    setting.keeper.write({"fast": {"deployments/fox a": "parity failed"}})
    assert (setting.states.puts, setting.state.problems) == (2, {"deployments/fox a": "parity failed"})


def test_a_pool_that_waits_gives_nothing_up(setting: Setting) -> None:
    setting.cluster.runs(2, replicas=["10.0.0.1", "10.0.0.2"])
    setting.jobs.found = [waits()]
    setting.look()
    assert setting.cluster.maxima() == [[2]]


def test_a_pool_that_yields_gives_one_up_until_the_job_is_over_and_another_process_goes_on_with_that() -> None:
    setting = Setting(FAST.model_copy(update={"when_full": "yield"}))
    setting.cluster.runs(2, replicas=["10.0.0.1", "10.0.0.2"])
    setting.look()
    setting.jobs.found = [waits(id="j1"), waits(id="j2")]
    setting.look()
    assert setting.cluster.maxima() == [[2], [1]]
    assert "at most 1 replicas until jobs/j1 is over" in setting.state.message
    setting.cluster.runs(1, replicas=["10.0.0.1"])
    setting.jobs.found = [waits(id="j1", waits_for=""), waits(id="j2")]
    setting.keeper = setting.another()
    setting.look()
    assert setting.cluster.maxima()[-1] == [1] and setting.state.gives_to == "jobs/j1"
    setting.jobs.found = [waits(id="j2")]
    setting.look()
    assert setting.state.gives_to == "jobs/j2", "the next job has the device then"
    setting.jobs.found = []
    setting.look()
    assert setting.cluster.maxima()[-1] == [2] and setting.state.gives_to == ""


def test_a_pool_that_gives_its_last_replica_up_has_no_application_meanwhile() -> None:
    setting = Setting(FAST.model_copy(update={"when_full": "yield", "max_replicas": 1}))
    setting.cluster.runs(1, replicas=["10.0.0.1"])
    setting.nodes.there = ready("10.0.0.1")
    setting.look()
    setting.jobs.found = [waits()]
    setting.look()
    assert setting.cluster.maxima() == [[1], []]
    setting.cluster.found.clear()
    setting.nodes.there = [PoolNode(name="node", address="10.0.0.1")]
    setting.look()
    setting.look()
    assert len(setting.cluster.puts) == 2 and setting.nodes.scaled[-1] == 0
    assert not setting.state.in_place and "given its device up until jobs/j1 is over" in setting.state.message
    setting.jobs.found = []
    setting.look()
    assert setting.cluster.maxima()[-1] == [1] and setting.nodes.scaled[-1] == 1
