"""Values that contradict each other, or that nobody knows, are refused before anything is installed."""

from __future__ import annotations

from typing import Any

import pytest

from chart.rendering import Refused, render

S3 = {"url": "s3://bucket/atelier"}
POSTGRES = {"url": "postgresql://atelier@db/atelier"}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"serverr": {}}, "serverr"),
    "an unknown key further down": ({"server": {"replica": 2}}, "replica"),
    "a ledger without a store": ({"ledger": POSTGRES}, "store"),
    "a store without a ledger": ({"store": S3}, "store"),
    "several servers on one volume": ({"server": {"replicas": 2}}, "replicas"),
    "a pool with more at least than at most": ({"pools": [{"name": "a", "minReplicas": 3, "maxReplicas": 1}]}, "minReplicas"),
    "a pool twice": ({"pools": [{"name": "a"}, {"name": "a"}]}, "a"),
    "a pool without a name": ({"pools": [{"gpu": "NVIDIA-A10"}]}, "name"),
    "a pool with an unknown key": ({"pools": [{"name": "a", "gpus": 1}]}, "gpus"),
    "a policy that there is not": ({"pools": [{"name": "a", "whenFull": "fail"}]}, "whenFull"),
    "an operator that there is not": ({"ray": {"operator": "rayservice"}}, "operator"),
    "certificates from two places": ({"tls": {"existingSecret": "a", "certManager": {"enabled": True, "issuerRef": {"name": "b"}}}}, "tls"),
    "an Ingress without a host": ({"ingress": {"enabled": True}}, "host"),
    "a route without a gateway": ({"grpcRoute": {"enabled": True}}, "parentRefs"),
    "a deployment on a pool that there is not": ({"deployments": [{"name": "a", "model": "base", "pool": "b"}]}, "pool"),
}


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_refused_by_name(case: str, version: int) -> None:
    values, word = WRONG[case]
    with pytest.raises(Refused, match=word):
        render(values, version=version)
