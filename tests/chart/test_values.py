"""Values: each one does something, none is missing from the schema or from values.yaml, and no mapping takes a key that nobody knows."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import pytest
import yaml

from chart.rendering import CHART, PROFILES, Refused, text, values_of

DEFAULTS: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())

OTHER: dict[str, Any] = {
    "operator": "kuberay",
    "apiVersion": "gateway.networking.k8s.io/v1alpha3",
    "digest": f"sha256:{'f' * 64}",
    "externalTrafficPolicy": "Local",
    "pullPolicy": "Always",
    "ledger.url": "postgresql://other@db/other",
    "store.url": "s3://other/place",
    "service.type": "LoadBalancer",
    "service.nodePort": 30999,
    "size": "7Gi",
    "scratchSize": "7Gi",
    "cacheSize": "7Gi",
    "extraEnv": [{"name": "ADDED", "value": "1"}],
    "extraEnvFrom": [{"configMapRef": {"name": "added"}}],
    "extraVolumes": [{"name": "added", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "added", "mountPath": "/added"}],
    "extraInitContainers": [{"name": "added", "image": "added:1"}],
    "extraContainers": [{"name": "added", "image": "added:1"}],
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "added"}}],
    "tracing.endpoint": "http://other:4317",
    "tracing.ratio": 0.5,
    "extraEgress": [{"ports": [{"port": 1234}]}],
    "tolerations": [{"key": "added"}],
    "topologySpreadConstraints": [{"maxSkew": 7}],
    "parentRefs": [{"name": "added"}],
    "pools": [{"name": "added"}],
    "ports": [1234],
    "clients": [{"podSelector": {}}],
    "to": [{"podSelector": {}}],
    "networkPolicy.metrics": [{"podSelector": {}}],
    "deployments": [{"name": "added", "model": "base", "pool": "first"}, {"name": "more", "model": "base", "pool": "first"}],
    "issuerRef": {"name": "added"},
    "resources": {"requests": {"cpu": "123m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
    "autoscalerResources": {"requests": {"cpu": "123m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
    "affinity": {"podAntiAffinity": {}},
    "podSecurityContext": {"runAsUser": 4},
    "containerSecurityContext": {"privileged": False},
}
"""Another value than the default, by path or last key, where one of the type alone would not do."""


DOCUMENTED = re.findall(r"^\| `([^`]+)` \|", (CHART / "README.md").read_text().partition("## A pool")[0], re.MULTILINE)
"""What test_readme.py holds equal to values.yaml, where every value has to have a comment."""


WITH: dict[str, dict[str, Any]] = {"tls.certManager.enabled": {"tls": {"certManager": {"issuerRef": {"name": "company"}}}}}
"""What another value needs beside it."""


@pytest.mark.parametrize("path", DOCUMENTED)
def test_each_value_changes_what_is_rendered(path: str) -> None:
    keys = path.split(".")
    for name in ("default", "everything", "kuberay", "openshift", "ha"):
        values = _merged(values_of(name), WITH.get(path, {}))
        place = values
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = _other(path, place.get(keys[-1], _at(DEFAULTS, keys)))
        try:
            if text(values) != unchanged(name):
                return
        except Refused:
            continue
    pytest.fail(f"{path} changes nothing in any profile")


@cache
def unchanged(name: str) -> str:
    return text(values_of(name))


def test_the_defaults_and_all_profiles_follow_the_schema() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    for name in PROFILES:
        validator.validate(_merged(DEFAULTS, values_of(name)))


def test_values_and_schema_have_the_same_keys() -> None:
    def check(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        schema = _resolved(schema)
        if schema.get("additionalProperties") is not False:
            return
        optional = {"claims"} | ({"requests", "limits", "name", "kind", "group"} - set(values))
        assert set(values) == set(schema["properties"]) - optional, path or "the top"
        for key, value in values.items():
            if isinstance(value, dict):
                check(value, schema["properties"][key], f"{path}.{key}")

    check(DEFAULTS, SCHEMA, "")


def test_no_mapping_takes_a_key_that_nobody_knows() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for path in _mappings(DEFAULTS, SCHEMA):
        values = copy.deepcopy(DEFAULTS)
        _at(values, list(path))["unknown"] = 1
        # `global` is shared with the charts beside and above this one.
        assert validator.is_valid(values) is (path == ("global",)), path


def _mappings(value: dict[str, Any], schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    schema = _resolved(schema)
    if "properties" not in schema:
        return  # what Kubernetes has a schema of: labels, quantities, contexts
    yield path
    for key, below in value.items():
        if isinstance(below, dict) and key in schema["properties"]:
            yield from _mappings(below, schema["properties"][key], (*path, key))


def _at(values: Any, keys: list[str]) -> Any:
    for key in keys:
        values = values[key]
    return values


def _other(path: str, before: Any) -> Any:
    key = path.rpartition(".")[2]
    if path in OTHER or key in OTHER:
        return OTHER.get(path, OTHER.get(key))
    if isinstance(before, bool):
        return not before
    if isinstance(before, int | float):
        return before + 1
    if isinstance(before, str):
        return f"{before}0" if before[:1].isdigit() else "changed"
    return ["added.example.org"] if isinstance(before, list) else {"example.org/added": "yes"}


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    return SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = copy.deepcopy(below)
    for key, value in above.items():
        both[key] = _merged(both[key], value) if isinstance(value, dict) and isinstance(both.get(key), dict) else value
    return both
