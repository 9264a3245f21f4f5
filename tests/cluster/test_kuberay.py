"""The chart with `ray.operator: kuberay`, where KubeRay's operator runs: docs/kubernetes.md says how to try it on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from atelier.client.client import Client
from cluster.kubectl import Kubectl
from cluster.release import KEPT, Release, until
from cluster.walk import picture

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

SMALL = {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "4Gi"}}
POOLS: list[dict[str, Any]] = [
    {"name": "busy", "minReplicas": 1, "maxReplicas": 1, "resources": SMALL},
    {
        "name": "idle", "minReplicas": 0, "maxReplicas": 1, "upscaleDelaySeconds": 0, "downscaleDelaySeconds": 5,
        "downscaleToZeroDelaySeconds": 15, "resources": SMALL,
    },
    {"name": "b200", "gpu": "NVIDIA-B200"},
]  # fmt: skip
VALUES: dict[str, Any] = {
    "pools": POOLS,
    "deployments": [{"name": pool, "model": "base", "pool": pool} for pool in ("busy", "idle")],
    "ray": {"operator": "kuberay", "kuberay": {"idleTimeoutSeconds": 15}},
}
# It makes no pod, and a status alone.
SUSPENDED = {
    "apiVersion": "ray.io/v1",
    "kind": "RayCluster",
    "metadata": {"name": "suspended"},
    "spec": {
        "suspend": True,
        "headGroupSpec": {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "ray-head", "image": "none"}]}}},
    },
}


@pytest.fixture(scope="module")
def operated(namespace: Kubectl) -> Kubectl:
    """A namespace in which KubeRay's operator looks after RayClusters."""
    if "/rayclusters.ray.io" not in namespace("get", "customresourcedefinitions", "-o", "name"):
        pytest.skip("the cluster has no CRD rayclusters.ray.io")
    namespace.apply(SUSPENDED)
    said = namespace("wait", "--for=jsonpath={.status.state}=suspended", "--timeout=20s", "raycluster/suspended", ok=False)
    namespace("delete", "raycluster", "suspended")
    if "condition met" not in said:
        pytest.skip(f"no operator of KubeRay answers: {said}")
    return namespace


@pytest.fixture(scope="module")
def release(operated: Kubectl, tmp_path_factory: pytest.TempPathFactory, image_values: dict[str, Any]) -> Iterator[Release]:
    """Installed once for all tests of this file."""
    values = {**image_values, **VALUES}
    # Ray's autoscaler owns what it has written last, and a plain upgrade by Helm 4 is refused.
    release = Release(operated, tmp_path_factory.mktemp("release"), values=values, flags=["--force-conflicts"])
    began = time.monotonic()
    release.install()
    with release.client() as client:
        picture(client, "busy", patience=240)
    print(f"\nhelm install to the first picture: {time.monotonic() - began:.0f} s")
    yield release


@pytest.fixture
def client(release: Release) -> Iterator[Client]:
    with release.client() as client:
        yield client


def test_replicas_are_on_pods_of_their_pool_s_group(client: Client, release: Release) -> None:
    picture(client, "idle", patience=240)
    found = release.replicas()
    for pool in ("busy", "idle"):
        pods = release.nodes(pool)
        assert found[pool] and found[pool] <= {pod["status"]["podIP"] for pod in pods}
        for pod in pods:
            assert pod["metadata"]["labels"].items() >= {"ray.io/group": pool, "atelier.dev/pool": pool, "atelier.dev/gpu": "cpu"}.items()
            assert [owner["kind"] for owner in pod["metadata"]["ownerReferences"]] == ["RayCluster"]


def test_a_pool_goes_to_zero_and_the_first_call_brings_it_back(client: Client, release: Release) -> None:
    began = time.monotonic()
    until(lambda: not release.nodes("idle"), seconds=240, release=release)
    print(f"\n1 -> 0: after {time.monotonic() - began:.0f} s")
    time.sleep(5)
    assert not release.nodes("idle") and release.nodes("busy")
    began = time.monotonic()
    picture(client, "idle", patience=0, deadline=240)
    print(f"\n0 -> 1: picture after {time.monotonic() - began:.0f} s")
    assert len(release.nodes("idle")) == 1
    until(lambda: not release.nodes("idle"), seconds=240, release=release)


def test_a_pool_of_a_product_that_no_node_has_says_so(release: Release) -> None:
    (pod,) = release.nodes("b200")
    assert pod["status"]["phase"] == "Pending" and pod["spec"]["nodeSelector"]["nvidia.com/gpu.product"] == "NVIDIA-B200"
    assert pod["metadata"]["labels"].items() >= {"ray.io/group": "b200", "atelier.dev/gpu": "NVIDIA-B200"}.items()
    until(lambda: "nodes are available" in release.atelier("pools"), seconds=60, release=release)


def test_an_upgrade_reaches_the_pods_of_ray(release: Release) -> None:
    before = {pod["metadata"]["uid"] for pod in (*release.pods("ray-head"), *release.nodes("busy"))}
    release.install(ray={**VALUES["ray"], "nodes": {"podAnnotations": {"atelier.dev/test": "upgraded"}}})
    until(lambda: before.isdisjoint(pod["metadata"]["uid"] for pod in release.pods("ray-head")), seconds=60, release=release)
    with release.client() as client:
        picture(client, "busy", patience=240)
    (node,) = release.nodes("busy")
    assert node["metadata"]["uid"] not in before and node["metadata"]["annotations"]["atelier.dev/test"] == "upgraded"


def test_pictures_come_again_when_the_head_of_ray_was_killed(client: Client, release: Release) -> None:
    (head,) = release.pods("ray-head")
    release.kubectl("delete", "pod", head["metadata"]["name"], "--grace-period=0", "--force")
    began = time.monotonic()
    time.sleep(5)  # what still answers now may be the old
    picture(client, "busy", patience=240)
    print(f"\nhead killed to pictures: {time.monotonic() - began:.0f} s")
    until(lambda: release.ready("ray-head") and release.replicas().get("busy"), seconds=180, release=release)
    picture(client, "busy", patience=60)


def test_uninstall_leaves_what_the_notes_name_and_nothing_else(release: Release) -> None:
    release.uninstall()
    until(lambda: release.left() <= KEPT, seconds=120, release=release)
    assert release.left() == KEPT
