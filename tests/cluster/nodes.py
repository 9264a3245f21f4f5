"""The nodes: this machine, and the fake ones with the GPUs that the tests need."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from cluster.api import Api
from cluster.place import NODE_NAME

# Name -> product as NVIDIA's GPU feature discovery writes it, and memory in MiB.
FAKE = {
    "a10-0": ("NVIDIA-A10", 23028),
    "a10-1": ("NVIDIA-A10", 23028),
    "h100-0": ("NVIDIA-H100-80GB-HBM3", 81559),
}


class NotReady(Exception):
    """A node did not become ready in time."""


def create(api: Api) -> None:
    """Adds the fake nodes that are missing."""
    for name, (product, memory) in FAKE.items():
        api.create("/api/v1/nodes", _fake(name, product, memory))


def wait_until_ready(api: Api, *, seconds: float = 120) -> None:
    """Waits for the real node and the fake ones."""
    expected = {NODE_NAME, *FAKE}
    deadline = time.monotonic() + seconds
    while waiting := expected - {node["metadata"]["name"] for node in api.get("/api/v1/nodes")["items"] if _is_ready(node)}:
        if time.monotonic() > deadline:
            raise NotReady(f"not ready after {seconds:.0f} s: {', '.join(sorted(waiting))}")
        time.sleep(0.5)


def _fake(name: str, product: str, memory: int) -> Mapping[str, object]:
    room = {"cpu": "32", "memory": "256Gi", "pods": "110", "nvidia.com/gpu": "1"}
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.memory": str(memory),
        "nvidia.com/gpu.count": "1",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        # The taint that GPU nodes usually have; without it ordinary pods would land on nodes that run nothing.
        "spec": {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]},
        "status": {"capacity": room, "allocatable": room},
    }


def _is_ready(node: Mapping[str, Any]) -> bool:
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in node["status"].get("conditions", []))
