"""The chart with Postgres and S3: a Deployment for every service, two gateways, two nodes; no call fails while parts are replaced."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from atelier.client.client import Client
from cluster.backing import backing
from cluster.kubectl import Kubectl
from cluster.load import steadily
from cluster.release import NAME, Release, until
from cluster.walk import octopus, picture, walk

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

POOL: dict[str, Any] = {
    "name": "cpu", "minReplicas": 2, "maxReplicas": 2,
    "resources": {"requests": {"cpu": "200m", "memory": "1536Mi"}, "limits": {"cpu": "1", "memory": "4Gi"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def release(namespace: Kubectl, tmp_path_factory: pytest.TempPathFactory, image_values: dict[str, Any]) -> Iterator[Release]:
    """Installed once for all tests of this file."""
    with backing(namespace) as values:
        scale = {service: {"replicas": 2} for service in ("server", "trainer")}
        release = Release(namespace, tmp_path_factory.mktemp("release"), values={**image_values, **values, **scale, "pools": [POOL]})
        release.install()
        with release.client() as client:
            picture(client, "base", patience=240)
        yield release


@pytest.fixture
def outside(release: Release) -> Iterator[Client]:
    """A client that stays while pods go."""
    with release.outside() as client:
        picture(client, "base", patience=150)
        yield client


def test_pictures_become_a_picture(release: Release, tmp_path_factory: pytest.TempPathFactory) -> None:
    with release.client() as client:
        walk(client, release, octopus(client, tmp_path_factory.mktemp("octopus")))


def test_no_call_fails_while_the_release_is_upgraded_and_rolled_back(release: Release, outside: Client) -> None:
    def upgrade() -> None:
        release.install(control={"podAnnotations": {"changed": str(time.time())}})

    for what, change in (("upgrade", upgrade), ("rollback", lambda: release.helm("rollback", NAME, "--wait", "--timeout=240s"))):
        with steadily(outside, "base") as told:
            time.sleep(5)
            change()
            release.rolled_out("server", "trainer", "converter", "compiler")
            time.sleep(10)
        print(f"\n{what}: {told.pictures} pictures, longest gap {told.gap_seconds:.1f} s")
        assert not told.failures and told.pictures >= 15, (what, told)


def test_no_call_fails_while_a_node_is_evicted(release: Release, outside: Client) -> None:
    until(lambda: len(release.ready("ray-node")) == 2, seconds=120, release=release)
    pod = release.pods("ray-node")[0]["metadata"]["name"]
    with steadily(outside, "base") as told:
        time.sleep(5)
        release.evict(pod)
        until(lambda: pod not in release.ready("ray-node") and len(release.ready("ray-node")) == 2, seconds=240, release=release)
        time.sleep(10)
    print(f"\neviction: {told.pictures} pictures, longest gap {told.gap_seconds:.1f} s")
    assert not told.failures and told.pictures >= 15, told
