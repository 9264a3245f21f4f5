"""Where replicas and workers go, and how nodes follow the load."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from atelier.client.client import Client
from atelier.v1 import server_pb2
from cluster.kubectl import Kubectl
from cluster.load import steadily
from cluster.release import NAME, Release, until
from cluster.walk import octopus, picture, training

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

SMALL = {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "4Gi"}}
CPU_POOLS: list[dict[str, Any]] = [
    {
        "name": "busy", "minReplicas": 1, "maxReplicas": 2, "targetOngoingRequests": 1, "upscaleDelaySeconds": 3,
        "downscaleDelaySeconds": 15, "resources": SMALL,
    },
    {
        "name": "idle", "minReplicas": 0, "maxReplicas": 1, "upscaleDelaySeconds": 0, "downscaleDelaySeconds": 5,
        "downscaleToZeroDelaySeconds": 15, "resources": SMALL,
    },
]  # fmt: skip
GPU_POOLS: list[dict[str, Any]] = [
    {"name": name, "gpu": gpu, "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}
    for name, gpu in (("a10", "NVIDIA-A10"), ("h100", "NVIDIA-H100-80GB-HBM3"), ("b200", "NVIDIA-B200"))
]


@pytest.fixture(scope="module")
def release(namespace: Kubectl, tmp_path_factory: pytest.TempPathFactory, image_values: dict[str, Any]) -> Iterator[Release]:
    """Installed once for all tests of this file."""
    deployments = [{"name": "busy", "model": "base", "pool": "busy"}, {"name": "idle", "model": "base", "pool": "idle"}]
    values = {**image_values, "pools": CPU_POOLS, "deployments": deployments}
    release = Release(namespace, tmp_path_factory.mktemp("release"), values=values)
    release.install()
    with release.client() as client:
        picture(client, "busy", patience=240)
    yield release


@pytest.fixture
def client(release: Release) -> Iterator[Client]:
    with release.client() as client:
        yield client


def test_each_pool_has_its_replicas_on_its_own_nodes(client: Client, release: Release) -> None:
    picture(client, "busy")
    picture(client, "idle", patience=120)
    found = release.replicas()
    for pool in ("busy", "idle"):
        assert found[pool] and found[pool] <= {pod["status"]["podIP"] for pod in release.nodes(pool)}


def test_a_pool_grows_under_load_and_shrinks_again_without_a_failed_call(client: Client, release: Release) -> None:
    with steadily(client, "busy", every_seconds=0.0, callers=6) as told:
        until(lambda: len(release.nodes("busy")) == 2, seconds=90, release=release)
        until(lambda: len(release.replicas()["busy"]) == 2, seconds=120, release=release)
    with steadily(client, "busy", every_seconds=3.0) as calm:
        until(lambda: len(release.nodes("busy")) == 1, seconds=180, release=release)
        time.sleep(5)
    print(f"\n1 -> 2 -> 1: {told.pictures} and {calm.pictures} pictures")
    assert not told.failures and not calm.failures and told.pictures and calm.pictures


def test_the_first_call_brings_a_pool_back_from_zero(client: Client, release: Release) -> None:
    until(lambda: not release.nodes("idle"), seconds=180, release=release)
    began = time.monotonic()
    picture(client, "idle", patience=0, deadline=180)
    print(f"\n0 -> 1: picture after {time.monotonic() - began:.0f} s")
    assert len(release.nodes("idle")) == 1


def test_no_replica_starts_on_a_node_of_a_foreign_product(client: Client, release: Release) -> None:
    original = release.kubectl.get("deployment", f"{NAME}-pool-busy")
    foreign = copy.deepcopy({key: original[key] for key in ("apiVersion", "kind", "spec")})
    foreign["metadata"] = {"name": "foreign"}
    labels = {"atelier.dev/test": "foreign"}
    foreign["spec"] |= {"selector": {"matchLabels": labels}, "replicas": 1}
    foreign["spec"]["template"]["metadata"]["labels"] = labels
    (container,) = foreign["spec"]["template"]["spec"]["containers"]
    container["args"] = [word.replace("atelier.dev/gpu=cpu", "atelier.dev/gpu=NVIDIA-A10") for word in container["args"]]
    container.pop("readinessProbe")
    assert foreign["spec"]["template"] != original["spec"]["template"]
    release.kubectl.apply(foreign)
    try:
        release.kubectl.wait("condition=Available", "deployment/foreign", seconds=120)
        (pod,) = release.kubectl.get("pods", "-l", "atelier.dev/test=foreign")["items"]
        with steadily(client, "busy", every_seconds=0.0, callers=6):
            until(lambda: len(release.replicas()["busy"]) == 2, seconds=150, release=release)
        assert pod["status"]["podIP"] not in set.union(*release.replicas().values())
    finally:
        release.kubectl("delete", "deployment", "foreign")


def test_gpu_pools_land_on_nodes_of_their_product_and_what_waits_says_why(client: Client, release: Release, tmp_path: Any) -> None:
    release.install(pools=[*CPU_POOLS, *GPU_POOLS])
    release.rolled_out("control")
    for pool, places in (("a10", {"a10-0", "a10-1"}), ("h100", {"h100-0"})):
        until(lambda pool=pool: any(p["spec"].get("nodeName") for p in release.nodes(pool)), seconds=90, release=release)  # type: ignore[misc]
        assert {pod["spec"]["nodeName"] for pod in release.nodes(pool)} <= places
    until(lambda: bool(release.nodes("b200")), seconds=60, release=release)
    assert {pod["status"]["phase"] for pod in release.nodes("b200")} == {"Pending"}
    with release.client() as again:
        until(lambda: "nodes are available" in release.atelier("pools"), seconds=60, release=release)
        job = again.train(training(octopus(again, tmp_path), pool="pools/b200"))
        until(lambda: "nodes are available" in "".join(lines_of(again, job.name)), seconds=90, release=release)
        again.jobs.cancel(job.name)
    picture_again(release)


def lines_of(client: Client, job: str) -> list[str]:
    """What was said of a job until now."""
    found = []
    for response in client.jobs.watch(job):
        found.append(response.event.log.message + response.event.attempt.reason)
        if response.event.sequence >= client.jobs.get(job).last_sequence:
            return found
    return found


def picture_again(release: Release) -> None:
    """Other pools go on while one has no node."""
    with release.client() as client:
        picture(client, "busy", patience=60)
        ready = server_pb2.DEPLOYMENT_STATE_READY
        until(lambda: client.deployments.get("busy").state == ready, seconds=60, release=release)


def test_values_that_contradict_each_other_are_refused(release: Release) -> None:
    file = release.folder / "wrong.json"
    file.write_text(json.dumps({"pools": [{"name": "cpu", "minReplicas": 3, "maxReplicas": 1}]}))
    said = release.helm("template", NAME, str(release.chart), "-f", str(file), ok=False)
    assert "minReplicas" in said
