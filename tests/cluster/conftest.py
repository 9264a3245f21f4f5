"""Namespaces in the cluster that `make test-cluster` brought up."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from cluster.kubectl import Kubectl


@pytest.fixture
def kubectl() -> Iterator[Kubectl]:
    """A namespace with restricted PodSecurity, gone after the test."""
    yield from _namespace()


@pytest.fixture(scope="module")
def namespace() -> Iterator[Kubectl]:
    """The same for all tests of a file."""
    yield from _namespace()


@pytest.fixture(scope="session")
def image_values() -> dict[str, object]:
    """Where the chart's images are from: the registry in ATELIER_IMAGE_REGISTRY, else `make cluster-images` has brought them in."""
    registry = os.environ.get("ATELIER_IMAGE_REGISTRY")
    return {"global": {"imageRegistry": registry}} if registry else {}


def _namespace() -> Iterator[Kubectl]:
    if not os.environ.get("KUBECONFIG"):
        pytest.fail("KUBECONFIG names no cluster: run `make test-cluster`")
    name = f"test-{uuid.uuid4().hex[:8]}"
    kubectl = Kubectl(name)
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield kubectl
    kubectl("delete", "namespace", name, "--wait=false")
