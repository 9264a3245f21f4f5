"""`atelier pools` and `atelier engines plan`: what people and programs read."""

from __future__ import annotations

import json

import pytest
from fake_shell import Shell

from atelier.engines.versions import VERSIONS
from atelier.v1 import server_pb2

FINGERPRINT = server_pb2.Fingerprint(
    device="cuda", product="NVIDIA-A10", capability="8.6", driver="580", torch=VERSIONS["torch"], backends={"inductor": "2.14.1+cu130"}
)
A10 = server_pb2.Pool(
    name="pools/a10",
    gpu="NVIDIA-A10",
    replicas=1,
    min_replicas=0,
    max_replicas=4,
    target_replicas=2,
    fingerprints=[FINGERPRINT],
    engines=[f"artifacts/{'e' * 64}"],
    models=[f"artifacts/{'a' * 64}", f"artifacts/{'b' * 64}"],
    nodes=[
        server_pb2.Node(name="pool-a10-x", ready=True),
        server_pb2.Node(name="pool-a10-y", reason="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
    ],
    waiting_jobs=[server_pb2.WaitingJob(job="jobs/j1", reason="0/3 nodes are available")],
)
ENGINE = f"artifacts/{'e' * 64}"
JOBS_ONLY = server_pb2.Pool(name="pools/h100", gpu="NVIDIA-H100-80GB-HBM3")


@pytest.fixture
def pools(shell: Shell) -> Shell:
    shell.fake.answers["ListPools"] = [server_pb2.ListPoolsResponse(pools=[A10, JOBS_ONLY])]
    return shell


def planned(**fields: object) -> server_pb2.PlannedEngine:
    plain = {"pool": "pools/a10", "fingerprint": FINGERPRINT, "present": True, "graph": "9" * 64, "deployments": ["deployments/fox"]}
    return server_pb2.PlannedEngine(**plain | fields)  # type: ignore[arg-type]


def plan(shell: Shell, *engines: server_pb2.PlannedEngine) -> Shell:
    shell.fake.answers["PlanEngines"] = [server_pb2.PlanEnginesResponse(engines=engines)]
    return shell


def test_a_row_for_programs_says_what_there_is_and_why_something_waits(pools: Shell) -> None:
    assert pools("pools") == 0
    _, a10, h100 = pools.out.splitlines()
    for word in ("a10 ", "1 of 2 (0-4)", "pool-a10-x ready, pool-a10-y not ready", "inductor 2.14.1+cu130", "eeeeeeeeeeee", "aaaaaaaaaaaa"):
        assert word in a10
    assert "pool-a10-y: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.; jobs/j1 waits: 0/3 nodes are available" in a10
    assert "jobs only" in h100


def test_people_get_a_line_each(pools: Shell) -> None:
    pools.terminal = True
    assert pools("pools") == 0
    assert len(pools.out.splitlines()) > 3 and "bbbbbbbbbbbb" in pools.out


def test_programs_get_json(pools: Shell) -> None:
    assert pools("pools --json") == 0
    first = json.loads(pools.out)["pools"][0]
    assert [node["name"] for node in first["nodes"]] == ["pool-a10-x", "pool-a10-y"] and first["target_replicas"] == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"state": server_pb2.ENGINE_STATE_THERE, "engine": ENGINE}, ("there eeeeeeeeeeee", "stays", "NVIDIA-A10", "driver 580")),
        ({"state": server_pb2.ENGINE_STATE_BEING_BUILT, "job": "jobs/j1"}, ("being built jobs/j1",)),
        ({"state": server_pb2.ENGINE_STATE_TO_BE_BUILT, "present": False, "message": "parity"}, ("to be built", "(at last)", "parity")),
        ({"state": server_pb2.ENGINE_STATE_NOT_WANTED}, ("not wanted",)),
    ],
)  # fmt: skip
def test_the_plan_tells_where_each_engine_stands(shell: Shell, fields: dict[str, object], words: tuple[str, ...]) -> None:
    assert plan(shell, planned(**fields))("engines plan") == 0
    assert all(word in shell.out.splitlines()[1] for word in (*words, "a10", "fox", "999999999999"))


def test_the_plan_names_engines_that_the_images_of_this_version_would_have_built_anew(shell: Shell) -> None:
    older = server_pb2.Fingerprint(device="cuda", product="NVIDIA-A10", torch="2.13.0")
    plan(shell, planned(fingerprint=older, state=server_pb2.ENGINE_STATE_THERE, engine=ENGINE))
    assert shell("engines plan") == 0
    assert f"built anew: torch 2.13.0 -> {VERSIONS['torch']}" in shell.out
    assert shell("engines plan --json") == 0
    found = json.loads(shell.out)
    assert found["engines"][0]["rebuilt_for"] == {"torch": ["2.13.0", VERSIONS["torch"]]}
    assert found["versions"] == dict(VERSIONS)


def test_a_pool_that_never_had_a_node_is_planned_too(shell: Shell) -> None:
    plan(shell, planned(fingerprint=None, present=False, state=server_pb2.ENGINE_STATE_TO_BE_BUILT))
    assert shell("engines plan") == 0 and "none was there yet" in shell.out
    assert shell("engines plan --json") == 0 and json.loads(shell.out)["engines"][0]["rebuilt_for"] == {}
