"""A namespace of each test in the cluster that `make test-cluster` brought up."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from cluster.kubectl import Kubectl


@pytest.fixture
def kubectl() -> Iterator[Kubectl]:
    """A namespace with restricted PodSecurity, gone after the test."""
    if not os.environ.get("KUBECONFIG"):
        pytest.fail("KUBECONFIG names no cluster: run `make test-cluster`")
    name = f"test-{uuid.uuid4().hex[:8]}"
    kubectl = Kubectl(name)
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield kubectl
    kubectl("delete", "namespace", name, "--wait=false")
