"""Every template file has a test of its own, and every value an effect."""

from __future__ import annotations

import copy
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from chart.rendering import CHART, PROFILES, WORKERS, Refused, text, values_of

MORE = {"resources": {"requests": {"cpu": "7", "memory": "7Gi"}, "limits": {"cpu": "7", "memory": "7Gi"}}}
ENVIRONMENT = {"extraEnv": [{"name": "TZ", "value": "UTC"}]}
SCALED = {"ledger": {"existingSecret": "a", "existingSecretKey": "b"}, "store": {"url": "s3://a"}}
ROUTE = {"enabled": True, "parentRefs": [{"name": "a"}], "annotations": {"a": "b"}}
FURTHER: list[dict[str, Any]] = [
    {"clusterDomain": "k8s.example.org", "persistence": {"existingClaim": "a"}, "tls": {"extraHosts": ["a.example.org"]}},
    {
        "rbac": {"create": False},
        "serviceAccounts": {"create": False},
        "credentials": {"create": False},
        "networkPolicy": {"enabled": False},
    },
    {"podDisruptionBudgets": {"enabled": False}, "pools": [{"name": "a", "maxReplicas": 2}]},
    {
        "images": {"pullPolicy": "Always"}
        | {name: {"registry": "a.example.org", "repository": "b", "tag": "c"} for name in ("control", *WORKERS, "node")}
    },
    {"podSecurityContext": {"runAsUser": 7}, "containerSecurityContext": {"readOnlyRootFilesystem": None}},
    {"server": MORE, "control": {"drainSeconds": 7, "terminationGracePeriodSeconds": 90}}
    | {name: MORE | ENVIRONMENT for name in WORKERS}
    | {"workers": {name: MORE for name in WORKERS}},
    {"workers": {"scratchSize": "7Gi", "ttlSecondsAfterFinished": 7, "terminationGracePeriodSeconds": 7}},
    {"ray": {"objectStoreBytes": 104857601, "head": MORE, "nodes": {"cacheSize": "7Gi", "terminationGracePeriodSeconds": 7} | MORE}},
    {"ray": {"operator": "kuberay", "kuberay": {"autoscalerResources": MORE["resources"]}}},
    {"tls": {"certManager": {"enabled": True, "issuerRef": {"name": "a"}, "duration": "7h", "renewBefore": "1h"}}},
    SCALED | {"server": {"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 4, "targetCPUUtilizationPercentage": 7}}},
    SCALED
    | {
        "networkPolicy": {"dns": {"ports": [5353]}}
        | {name: {"to": [{"podSelector": {"matchLabels": {"a": "b"}}}], "ports": [7]} for name in ("ledger", "store")}
    },
    {"service": {"type": "LoadBalancer", "loadBalancerClass": "a"}},
    {"grpcRoute": ROUTE | {"backendTls": {"apiVersion": "gateway.networking.k8s.io/v1alpha3", "caConfigMap": "a"}}},
    {"grpcRoute": ROUTE | {"backendTls": {"enabled": False}}},
    {"metrics": {"podMonitor": {"enabled": True, "interval": "7s"}, "dashboards": {"enabled": True, "labels": {"a": "b"}}}},
]
"""Values that no profile has."""


def test_every_template_has_a_test_of_its_own() -> None:
    templates = {path.relative_to(CHART / "templates") for path in (CHART / "templates").rglob("*") if path.suffix in (".yaml", ".txt")}
    here = Path(__file__).with_name("templates")
    tests = {path.relative_to(here).with_name(path.stem.removeprefix("test_")) for path in here.rglob("test_*.py")}
    assert {path.with_suffix("") for path in templates} == tests


def test_every_value_has_an_effect() -> None:
    """Each documented key is set in some set of values, and left out there changes what is rendered."""
    documented = runpy.run_path(str(CHART.parent / "generate_readme.py"))["values"]
    keys = [value.key for value in documented((CHART / "values.yaml").read_text())]
    sets = [*map(values_of, PROFILES), *FURTHER]
    with ThreadPoolExecutor(4) as threads:
        whole = list(threads.map(text, sets))
        effects = dict(zip(keys, threads.map(lambda key: _has_effect(key, sets, whole), keys), strict=True))
    without = [key for key, found in effects.items() if not found]
    assert not without, " ".join(without)


def _has_effect(key: str, sets: list[dict[str, Any]], whole: list[str]) -> bool:
    path = key.split(".")
    for values, printed in zip(sets, whole, strict=True):
        without = copy.deepcopy(values)
        above = without
        for name in path[:-1]:
            above = above.get(name, {})
        if path[-1] not in above:
            continue
        del above[path[-1]]
        if _printed(without) != printed:
            return True
    return False


def _printed(values: dict[str, Any]) -> str:
    try:
        return text(values)
    except Refused as error:  # which is an effect too
        return str(error)
