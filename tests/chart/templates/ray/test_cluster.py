"""templates/ray/cluster.yaml: only fields that charts/kuberay-fields.txt names, each known to the CRD in KUBERAY_CRDS, if set."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from chart.rendering import CHART, Object, Refused, render

FIELDS = CHART.parent / "kuberay-fields.txt"
CRDS = os.environ.get("KUBERAY_CRDS", "")
# Kubernetes' own, or a map of the user's: nothing below them is KubeRay's.
WHOLE = {"template", "resources", "env", "volumeMounts", "securityContext", "labels", "annotations", "rayStartParams"}
MODES: dict[str, Object] = {
    "plain": {},
    "with TLS": {"ray": {"tls": True}},
    "with an idle pool and one for jobs": {
        "deployments": [],
        "pools": [{"name": "a", "minReplicas": 0}, {"name": "b", "minReplicas": 0, "maxReplicas": 0}],
    },
    "queued by Kueue": {"ray": {"kuberay": {"labels": {"kueue.x-k8s.io/queue-name": "research"}}}},
    "with all that pods may have": yaml.safe_load((CHART / "ci" / "everything-values.yaml").read_text()),
    "with GPUs and claims": yaml.safe_load((CHART / "ci" / "gpu-values.yaml").read_text()),
}


@pytest.mark.parametrize("mode", MODES)
def test_only_the_listed_fields_are_used(mode: str) -> None:
    assert set(_fields(_cluster(mode)["spec"], "spec")) <= _listed()


def test_every_listed_field_is_used() -> None:
    assert set().union(*(_fields(_cluster(mode)["spec"], "spec") for mode in MODES)) == _listed()


@pytest.mark.skipif(
    not CRDS, reason="KUBERAY_CRDS names no folder with KubeRay's CRDs (helm-chart/kuberay-operator/crds of its repository)"
)
@pytest.mark.parametrize("mode", MODES)
def test_it_follows_the_schema_of_the_crd(mode: str) -> None:
    jsonschema.Draft7Validator(_schema()).validate(_cluster(mode))


@pytest.mark.skipif(not CRDS, reason="KUBERAY_CRDS names no folder")
def test_the_schema_of_the_crd_refuses_what_it_does_not_know() -> None:
    cluster = copy.deepcopy(_cluster("plain"))
    cluster["spec"]["workerGroupSpecs"][0]["gpu"] = "NVIDIA-A10"
    with pytest.raises(jsonschema.ValidationError, match="gpu"):
        jsonschema.Draft7Validator(_schema()).validate(cluster)


def test_a_group_has_its_pool_as_labels_for_ray_and_as_selector_for_kubernetes() -> None:
    groups = {group["groupName"]: group for group in _cluster("with GPUs and claims")["spec"]["workerGroupSpecs"]}
    assert set(groups) == {"a10", "h100", "mig", "claimed"}  # `training` takes jobs alone
    h100 = groups["h100"]
    product = "NVIDIA-H100-80GB-HBM3"
    assert (h100["minReplicas"], h100["maxReplicas"]) == (1, 8)
    assert h100["labels"] == {"atelier.dev/pool": "h100", "atelier.dev/gpu": product}
    assert "labels" not in h100["rayStartParams"]  # the operator refuses it there
    assert h100["rayStartParams"]["num-gpus"] == "2"
    pod = h100["template"]
    assert pod["metadata"]["labels"].items() >= h100["labels"].items()
    assert pod["spec"]["nodeSelector"]["nvidia.com/gpu.product"] == product
    [node] = pod["spec"]["containers"]
    assert f"--labels=atelier.dev/pool=h100,atelier.dev/gpu={product}" in node["args"]
    assert node["resources"]["limits"]["nvidia.com/gpu"] == 2


def test_what_ray_is_told_by_the_operator_is_what_its_command_says() -> None:
    for mode in MODES:
        spec = _cluster(mode)["spec"]
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            ray = group["template"]["spec"]["containers"][0]  # the operator takes the first container for Ray's
            assert ray["command"][:2] == ["ray", "start"]
            for key, value in group["rayStartParams"].items():
                assert f"--{key}={value}" in ray["args"], (mode, key)


def test_what_an_upgrade_changes_reaches_pods_that_are_there() -> None:
    assert _cluster("plain")["spec"]["upgradeStrategy"] == {"type": "Recreate"}


def test_what_serve_keeps_of_an_application_is_not_left_on_the_node_that_built_it() -> None:
    spec = _cluster("plain")["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        env = {one["name"]: one.get("value") for one in group["template"]["spec"]["containers"][0]["env"]}
        assert int(env["RAY_max_direct_call_object_size"]) > 200_000


def test_the_head_s_autoscaler_shows_ray_the_same_token_and_certificate() -> None:
    cluster = _cluster("with TLS")
    options, head = cluster["spec"]["autoscalerOptions"], cluster["spec"]["headGroupSpec"]["template"]["spec"]
    ray = head["containers"][0]
    assert [one for one in ray["env"] if one["name"].startswith(("RAY_AUTH", "RAY_TLS", "RAY_USE_TLS"))] == options["env"]
    assert {one["name"] for one in options["volumeMounts"]} <= {one["name"] for one in head["volumes"]}
    assert head["automountServiceAccountToken"] is True  # it asks the API server for nodes
    assert "--no-monitor" in ray["args"]


def test_a_name_that_is_too_long_for_the_operator_s_objects_is_cut() -> None:
    values = {"fullnameOverride": "a" * 40, "ray": {"operator": "kuberay"}}
    assert len(render(values).one("RayCluster", "a" * 40)["metadata"]["name"]) <= 53  # as the operator asks
    with pytest.raises(Refused, match="fullnameOverride"):
        render({**values, "fullnameOverride": "a" * 41})


def _cluster(mode: str) -> Object:
    values = MODES[mode]
    rendered = render({**values, "ray": {**values.get("ray", {}), "operator": "kuberay"}})
    [cluster] = rendered.all("RayCluster")
    assert not {"atelier-ray-head", "studio-ray-head"} & rendered.names("Deployment")
    return cluster


def _listed() -> set[str]:
    return {line for line in FIELDS.read_text().splitlines() if line and not line.startswith("#")}


def _fields(value: Any, path: str) -> Iterator[str]:
    """Paths of all leaves, and of what is Kubernetes' own."""
    if isinstance(value, list) and path.rpartition(".")[2] not in WHOLE:
        for one in value:
            yield from _fields(one, f"{path}[]")
    elif isinstance(value, dict) and path.rpartition(".")[2] not in WHOLE:
        for key, below in value.items():
            yield from _fields(below, f"{path}.{key}")
    else:
        yield path


@cache
def _schema() -> Object:
    """Of a RayCluster, as JSON Schema that refuses unknown keys, as the API server does with `--validate=strict`."""
    [crd] = [
        one
        for path in sorted(Path(CRDS).glob("*.yaml"))
        if (one := yaml.load(path.read_text(), Loader=yaml.CSafeLoader))["spec"]["names"]["kind"] == "RayCluster"
    ]
    [version] = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"]["x-kubernetes-preserve-unknown-fields"] = True
    return dict(_closed(schema))


def _closed(schema: Object) -> Object:
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if "properties" in found:
        found["properties"] = {key: _closed(value) for key, value in found["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), dict):
            found[key] = _closed(found[key])
    return found
