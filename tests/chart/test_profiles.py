"""Every profile of charts/atelier/ci: what holds for all that is rendered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import kubernetes_validate
import pytest

from chart.rendering import CHART, NAMESPACE, PROFILES, WORKERS, Object, profile, text

VERSIONS = ("1.31", "1.34", "1.37")
FOREIGN = (
    "cert-manager.io/v1", "gateway.networking.k8s.io/v1", "monitoring.coreos.com/v1", "ray.io/v1",
)  # fmt: skip
"""API versions that Kubernetes itself has no schemas of."""

_valid: set[tuple[str, str]] = set()


@pytest.mark.parametrize("name", PROFILES)
def test_helm_3_and_helm_4_render_the_same(name: str) -> None:
    assert profile(name, version=3).objects == profile(name, version=4).objects


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("version", VERSIONS)
def test_objects_follow_the_schemas_of_kubernetes(name: str, version: str) -> None:
    rendered = profile(name)
    for one in [*rendered.objects, *map(rendered.worker, WORKERS)]:
        key = version, json.dumps(one, sort_keys=True)
        if one["apiVersion"] in FOREIGN or key in _valid:
            continue
        kubernetes_validate.validate(one, version, strict=True)
        _valid.add(key)


@pytest.mark.parametrize("name", PROFILES)
def test_objects_have_names_labels_and_a_namespace_of_their_own(name: str) -> None:
    seen = set()
    for one in profile(name).objects:
        metadata = one["metadata"]
        if "labels" not in metadata:
            assert metadata["name"] in ("beside", "atelier-studio-more")  # extraObjects are the user's
            continue
        key = one["kind"], metadata["name"]
        assert key not in seen
        seen.add(key)
        assert metadata["namespace"] == NAMESPACE
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", metadata["name"]), metadata["name"]
        for label in ("name", "instance", "version", "component", "part-of", "managed-by"):
            assert f"app.kubernetes.io/{label}" in metadata["labels"], (key, label)
        for label, value in metadata["labels"].items():
            assert re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", value), (label, value)


@pytest.mark.parametrize("name", PROFILES)
def test_no_list_has_a_name_twice_so_that_server_side_apply_takes_it(name: str) -> None:
    for pod in profile(name).pods():
        _each_once(pod.where, [one["name"] for one in pod.containers])
        _each_once(pod.where, [one["name"] for one in pod.spec["volumes"]])
        for container in pod.containers:
            where = f"{pod.where} {container['name']}"
            _each_once(where, [one["name"] for one in container.get("env", ())])
            _each_once(where, [one["mountPath"] for one in container.get("volumeMounts", ())])
        ports = [one for container in pod.containers for one in container.get("ports", ())]
        _each_once(pod.where, [one["name"] for one in ports])
        _each_once(pod.where, [one["containerPort"] for one in ports])
    for service in profile(name).all("Service"):
        _each_once(service["metadata"]["name"], [one["name"] for one in service["spec"]["ports"]])


@pytest.mark.parametrize("name", PROFILES)
def test_what_is_mounted_is_there(name: str) -> None:
    for pod in profile(name).pods():
        volumes = {one["name"] for one in pod.spec["volumes"]}
        mounted = {mount["name"] for container in pod.containers for mount in container.get("volumeMounts", ())}
        assert mounted == volumes, pod.where


@pytest.mark.parametrize("name", PROFILES)
def test_what_pods_refer_to_is_rendered_made_by_the_hook_or_named_in_values(name: str) -> None:
    rendered = profile(name)
    own = rendered.one("ServiceAccount", _account(name))["metadata"]["name"].removesuffix("-worker")
    hook = {f"{own}-{suffix}" for suffix in ("ca", "tls", "token", "internal", "ray", "signing", "ray-ca")}
    theirs = {"atelier-postgres", "atelier-s3", "company-ca", "tokens", "wildcard", "clients", "own", f"{own}-client-tls"}
    for pod in rendered.pods():
        assert pod.spec["serviceAccountName"] in rendered.names("ServiceAccount"), pod.where
        for volume in pod.spec["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["secretName"] in hook | theirs, pod.where
            if "configMap" in volume:
                assert volume["configMap"]["name"] in rendered.names("ConfigMap") | {f"{own}-public", "authorities"}, pod.where
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in rendered.names("PersistentVolumeClaim"), pod.where


@pytest.mark.parametrize("name", PROFILES)
def test_services_select_pods_and_name_their_ports(name: str) -> None:
    rendered = profile(name)
    for service in rendered.all("Service"):
        selector = service["spec"]["selector"].items()
        pods = [pod for pod in rendered.pods() if selector <= pod.labels.items()]
        assert pods, service["metadata"]["name"]
        for pod in pods:
            there = {port["name"] for container in pod.containers for port in container.get("ports", ())}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= there, (service["metadata"]["name"], pod.where)


@pytest.mark.parametrize("name", PROFILES)
def test_deployments_select_their_own_pods_by_labels_that_no_version_changes(name: str) -> None:
    rendered = profile(name)
    for one in rendered.all("Deployment"):
        selector = one["spec"]["selector"]["matchLabels"].items()
        assert {pod.where for pod in rendered.pods() if selector <= pod.labels.items()} == {f"Deployment {one['metadata']['name']}"}
    for pod in rendered.pods():
        if not pod.where.startswith("Pod "):  # an object of its own has the labels of one
            assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(pod.labels), pod.where


def test_every_template_renders_an_object_in_some_profile() -> None:
    found = set()
    for name in PROFILES:
        printed = text(words=("--values", str(CHART / "ci" / f"{name}-values.yaml")))
        found |= set(re.findall(r"^# Source: atelier/(\S+)$", printed, re.MULTILINE))
    there = {str(path.relative_to(CHART)) for path in (CHART / "templates").rglob("*.yaml")}
    assert found == there


def _account(name: str) -> str:
    return next(one for one in sorted(profile(name).names("ServiceAccount")) if one.endswith("-worker"))


def _each_once(where: str, found: list[Object] | list[str] | list[int]) -> None:
    assert list(_twice(found)) == [], where


def _twice(found: list[Object] | list[str] | list[int]) -> Iterator[object]:
    return (one for i, one in enumerate(found) if one in found[:i])
