"""A pool that gives its device up for a job that finds none free, and has it back afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atelier.errors import AtelierError, Status
from atelier.v1 import image_pb2, job_pb2, server_pb2
from cluster.kubectl import Kubectl
from cluster.release import Release, until
from cluster.walk import done, octopus, picture, training

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture
def release(namespace: Kubectl, tmp_path: Path, image_values: dict[str, Any]) -> Iterator[Release]:
    """On one node, which has not the processors for a replica and a training worker at once."""
    (node, millis) = largest(namespace)
    pool = {
        "name": "shared", "minReplicas": 0, "maxReplicas": 1, "whenFull": "yield", "downscaleToZeroDelaySeconds": 3600,
        "nodeSelector": {"kubernetes.io/hostname": node}, "resources": asks(millis // 2),
    }  # fmt: skip
    values = {**image_values, "pools": [pool], "workers": {"trainer": {"resources": asks(millis * 11 // 20)}}}
    release = Release(namespace, tmp_path, values=values)
    release.install(deployments=[])
    release.rolled_out("control")
    yield release


def largest(kubectl: Kubectl) -> tuple[str, int]:
    """The name of a real node, and its processors in thousandths."""
    nodes = [node for node in kubectl.get("nodes")["items"] if not node["spec"].get("taints")]
    found = {node["metadata"]["labels"]["kubernetes.io/hostname"]: node["status"]["allocatable"]["cpu"] for node in nodes}
    millis = {name: int(cpu[:-1]) if cpu.endswith("m") else 1000 * int(cpu) for name, cpu in found.items()}
    return max(millis.items(), key=lambda one: one[1])


def asks(millis: int) -> dict[str, Any]:
    return {"requests": {"cpu": f"{millis}m", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "4Gi"}}


def test_a_pool_yields_to_a_job_and_has_its_replica_back(release: Release, tmp_path: Path) -> None:
    with release.client() as client:
        client.deployments.create("base", server_pb2.Deployment(model="base", pool="pools/shared", compile=False))
        picture(client, "base", patience=240, deadline=120)
        job = client.train(training(octopus(client, tmp_path / "pictures"), steps=30, pool="pools/shared"))
        until(lambda: "nodes are available" in client.jobs.get(job.name).waits_for, seconds=60, release=release)
        began = time.monotonic()
        until(lambda: client.jobs.get(job.name).state == job_pb2.JOB_STATE_RUNNING, seconds=180, release=release)
        print(f"\nyielded after {time.monotonic() - began:.0f} s")
        assert not release.nodes("shared") and client.jobs.get(job.name).waits_for == ""
        with pytest.raises(AtelierError) as caught:
            list(client.generate(image_pb2.GenerateRequest(deployment="base", prompt="a fox", steps=1), timeout_seconds=5))
        assert caught.value.status is Status.UNAVAILABLE and job.name in caught.value.message, caught.value
        assert "lora" in done(client, release, job)
        began = time.monotonic()
        picture(client, "base", patience=180, deadline=120)
        print(f"picture again {time.monotonic() - began:.0f} s after the job")
