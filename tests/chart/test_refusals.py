"""Values that contradict each other, or that nobody knows, are refused before anything is installed, with what to do about it."""

from __future__ import annotations

from typing import Any

import pytest

from chart.rendering import Refused, render

S3 = {"url": "s3://bucket/atelier"}
POSTGRES = {"url": "postgresql://atelier@db/atelier"}
MANAGER = {"enabled": True, "issuerRef": {"name": "b"}}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"serverr": {}}, "'?serverr"),
    "an unknown key further down": ({"server": {"replica": 2}}, "server.*replica"),
    "a ledger without a store": ({"ledger": POSTGRES}, r"store.url.*ledger and store go together: set store\.url"),
    "a ledger in a Secret without a store": ({"ledger": {"existingSecret": "a"}}, r"ledger and store go together: set store\.url"),
    "a store without a ledger": ({"store": S3}, r"store.url.*go together: set ledger\.url or ledger\.existingSecret"),
    "a store's Secret without a ledger": ({"store": {"existingSecret": "a"}}, r"store.existingSecret.*go together: set ledger\.url"),
    "a store with credentials in its URL": ({"ledger": POSTGRES, "store": {"url": "s3://key:secret@bucket"}}, "store.url"),
    "a ledger that is not Postgres": ({"ledger": {"url": "mysql://db"}, "store": S3}, "ledger.url.*postgresql"),
    "a ledger from two places": (
        {"ledger": POSTGRES | {"existingSecret": "a"}, "store": S3},
        "ledger: set url or existingSecret, not both",
    ),
    "a volume with a database": (
        {"ledger": POSTGRES, "store": S3, "persistence": {"existingClaim": "a"}},
        "persistence.existingClaim.*no volume is used with a ledger and a store",
    ),
    "several servers on one volume": ({"server": {"replicas": 2}}, "server.replicas.*more than one needs a ledger and a store"),
    "several trainers on one volume": ({"trainer": {"replicas": 2}}, "trainer.replicas.*more than one needs a ledger and a store"),
    "servers that scale on one volume": (
        {"server": {"autoscaling": {"enabled": True}}},
        "server.autoscaling.enabled.*more than one server needs a ledger and a store",
    ),
    "a scale upside down": (
        {"ledger": POSTGRES, "store": S3, "server": {"autoscaling": {"enabled": True, "minReplicas": 9}}},
        "server.autoscaling: minReplicas 9 is above maxReplicas 5",
    ),
    "no pool": ({"pools": []}, "pools"),
    "a pool with more at least than at most": (
        {"pools": [{"name": "a", "minReplicas": 3, "maxReplicas": 1}]},
        "pools: a has minReplicas 3 above maxReplicas 1",
    ),
    "a pool twice": ({"pools": [{"name": "a"}, {"name": "a"}]}, "pools: a name stands there twice: a, a"),
    "a pool without a name": ({"pools": [{"gpu": "NVIDIA-A10"}]}, "name"),
    "a pool with a name that is none": ({"pools": [{"name": "A10"}]}, "pools.0.name"),
    "a pool with an unknown key": ({"pools": [{"name": "a", "gpus": 1}]}, "pools.0.*gpus"),
    "a policy that there is not": ({"pools": [{"name": "a", "whenFull": "fail"}]}, "pools.0.whenFull.*wait.*yield"),
    "devices by claim and by resource": (
        {"pools": [{"name": "a", "gpu": "NVIDIA-A10", "resourceName": "nvidia.com/gpu", "resourceClaims": [{"name": "b"}]}]},
        "pools: a has resourceClaims and resourceName: set one of them",
    ),
    "a deployment on a pool that there is not": (
        {"deployments": [{"name": "a", "model": "base", "pool": "b"}]},
        "deployments: a is for pool b; there are: cpu",
    ),
    "a deployment on one of several pools": (
        {"pools": [{"name": "a"}, {"name": "b"}]},
        "deployments: say `pool` for base, since there are several: a, b",
    ),
    "a deployment on a pool for jobs": (
        {"pools": [{"name": "a", "minReplicas": 0, "maxReplicas": 0}]},
        "deployments: base is for pool a, which has maxReplicas 0 and takes jobs alone",
    ),
    "a deployment twice": (
        {"deployments": [{"name": "a", "model": "base"}, {"name": "a", "model": "base"}]},
        "deployments: a name stands there twice: a",
    ),
    "an operator that there is not": ({"ray": {"operator": "rayservice"}}, "ray.operator.*none.*kuberay"),
    "certificates from two places": (
        {"tls": {"existingSecret": "a", "certManager": MANAGER}},
        r"tls: set existingSecret or certManager\.enabled, not both",
    ),
    "names for a certificate that is there": (
        {"tls": {"existingSecret": "a", "extraHosts": ["b"]}},
        "tls: extraHosts are for a certificate that the release makes",
    ),
    "cert-manager without an issuer": ({"tls": {"certManager": {"enabled": True}}}, "tls.certManager.issuerRef.*name"),
    "mTLS with the release's own authority": ({"tls": {"mutual": {"caSecret": "a"}}}, "tls.(existingSecret|certManager)"),
    "mTLS without a certificate to show": (
        {"tls": {"existingSecret": "a", "mutual": {"caSecret": "b"}}},
        r"tls\.mutual: workers and replicas need a certificate to show: set clientSecret",
    ),
    "a certificate to show without mTLS": ({"tls": {"mutual": {"clientSecret": "a"}}}, "tls.mutual.clientSecret"),
    "an Ingress without a host": ({"ingress": {"enabled": True}}, "ingress.host"),
    "a route without a gateway": ({"grpcRoute": {"enabled": True}}, "grpcRoute.parentRefs"),
    "a drain that is longer than the pod's end": (
        {"control": {"drainSeconds": 42}},
        r"control: terminationGracePeriodSeconds has to be at least 20 more than drainSeconds \(42\)",
    ),
    "a class for a load balancer that there is not": (
        {"service": {"loadBalancerClass": "a"}},
        "service: loadBalancerClass and loadBalancerSourceRanges need type LoadBalancer",
    ),
    "a port of nodes that is not opened": ({"service": {"nodePort": 30000}}, "service: nodePort and externalTrafficPolicy need type"),
    "a digest that is none": ({"images": {"node": {"digest": "latest"}}}, "images.node.digest.*sha256"),
    "a label by which the release finds its own": (
        {"commonLabels": {"app.kubernetes.io/name": "a"}},
        "commonLabels.*the release sets this label itself",
    ),
    "a label of a pod's that is the release's": (
        {"control": {"podLabels": {"atelier.dev/pool": "a"}}},
        "control.podLabels.*the release sets this label itself",
    ),
    "a name that no Service can have": ({"fullnameOverride": "Atelier"}, "fullnameOverride"),
    "a variable that is no text": ({"control": {"extraEnv": [{"name": "A", "value": 1}]}}, "control.extraEnv.0.value.*string"),
    "resources of a pool that are none": ({"pools": [{"name": "a", "resources": {"cpu": 1}}]}, "pools.0.resources.*cpu"),
    "a quantity that is none": ({"persistence": {"size": "20 GB"}}, "persistence.size"),
}


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_refused_in_a_sentence(case: str, version: int) -> None:
    values, sentence = WRONG[case]
    with pytest.raises(Refused, match=f"(?s){sentence}"):
        render(values, version=version)


def test_sentences_of_the_schema_are_no_values() -> None:
    for values in (
        {"store": {"url": "ledger and store go together: set ledger.url or ledger.existingSecret"}},
        {"ledger": POSTGRES, "store": {"url": "ledger and store go together: set store.url"}},
        {"server": {"replicas": "more than one needs a ledger and a store"}},
        {"server": {"autoscaling": {"enabled": "more than one server needs a ledger and a store"}}},
        {"ledger": POSTGRES, "store": S3, "persistence": {"storageClass": "no volume is used with a ledger and a store"}},
    ):
        with pytest.raises(Refused, match="schema"):
            render(values)
