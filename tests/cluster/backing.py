"""Postgres and S3 for a release: real servers on this machine, which pods reach as Services of their namespace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import servers

from cluster.kubectl import Kubectl
from cluster.place import NODE_ADDRESS


@contextmanager
def backing(kubectl: Kubectl) -> Iterator[dict[str, Any]]:
    """The values of a release that has its ledger in a new Postgres and its store in a new bucket."""
    if "atelier-cluster" not in os.environ.get("KUBECONFIG", ""):
        pytest.skip("the servers of this test are reached from the cluster of this machine alone")
    with servers.postgres(NODE_ADDRESS) as postgres, servers.s3(NODE_ADDRESS) as s3:
        database, bucket = servers.new_database(postgres), servers.new_bucket(s3)
        kubectl.apply(*_service("postgres", urlsplit(postgres).port), *_service("s3", urlsplit(s3).port), _credentials())
        yield {
            "ledger": {"url": f"postgresql://atelier@postgres:80/{database.rpartition('/')[2]}"},
            "store": {"url": bucket.replace(s3, "http://s3:80"), "existingSecret": "s3"},
        }


def _service(name: str, port: int | None) -> list[dict[str, Any]]:
    """A Service without pods: its end is this machine."""
    labels = {"kubernetes.io/service-name": name}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80, "targetPort": port}]}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [NODE_ADDRESS]}],
            "ports": [{"port": port}],
        },
    ]


def _credentials() -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}, "stringData": servers.S3_ENVIRONMENT}
