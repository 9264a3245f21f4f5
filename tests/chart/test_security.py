"""Pod Security, accounts and networks of every profile."""

from __future__ import annotations

from typing import Any

import pytest

from chart.rendering import PROFILES, Pod, profile

VOLUMES = {"configMap", "emptyDir", "secret", "persistentVolumeClaim", "projected", "downwardAPI", "csi", "ephemeral"}
"""Kinds that the Pod Security Standard `restricted` allows."""
LOOSE = ("openshift",)
"""There the cluster sets uids."""


@pytest.mark.parametrize("name", PROFILES)
def test_pods_keep_to_the_restricted_standard(name: str) -> None:
    for pod in profile(name).pods():
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True and context["seccompProfile"] == {"type": "RuntimeDefault"}, pod.where
        assert ("runAsUser" in context) is (name not in LOOSE) and context.get("runAsUser") != 0, pod.where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod.spec), pod.where
        for volume in pod.spec["volumes"]:
            assert set(volume) - {"name"} <= VOLUMES, (pod.where, volume)
        for container in pod.own:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False and own["capabilities"] == {"drop": ["ALL"]}, pod.where
            assert own["readOnlyRootFilesystem"] is True and not own.get("privileged"), pod.where
            assert all("hostPort" not in port for port in container.get("ports", ())), pod.where


@pytest.mark.parametrize("name", PROFILES)
def test_a_token_of_the_api_server_is_mounted_only_where_there_is_a_role(name: str) -> None:
    rendered = profile(name)
    bound = {subject["name"] for binding in rendered.all("RoleBinding") for subject in binding["subjects"]}
    for pod in rendered.pods():
        mounted = pod.spec["automountServiceAccountToken"]
        # The autoscaler in the head's pod has a Role that KubeRay's operator makes.
        assert mounted is (pod.spec["serviceAccountName"] in bound) or "RayCluster" in pod.where, pod.where
    for account in rendered.all("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    assert not rendered.all("ClusterRole") and not rendered.all("ClusterRoleBinding")


@pytest.mark.parametrize("name", PROFILES)
def test_every_pod_is_denied_what_it_does_not_need(name: str) -> None:
    rendered = profile(name)
    policies = rendered.all("NetworkPolicy")
    for pod in rendered.pods():
        selecting = [one for one in policies if one["spec"]["podSelector"]["matchLabels"].items() <= pod.labels.items()]
        directions = {direction for one in selecting for direction in one["spec"]["policyTypes"]}
        assert directions == {"Ingress", "Egress"}, pod.where


@pytest.mark.parametrize("name", PROFILES)
def test_policies_name_ports_that_somebody_listens_on(name: str) -> None:
    rendered = profile(name)
    for policy in rendered.all("NetworkPolicy"):
        selector = policy["spec"]["podSelector"]["matchLabels"].items()
        own = [pod for pod in rendered.pods() if selector <= pod.labels.items()]
        assert own, policy["metadata"]["name"]
        listened = {port["containerPort"] for pod in own for container in pod.containers for port in container.get("ports", ())}
        for rule in policy["spec"].get("ingress", ()):
            for port in rule["ports"]:
                assert port["port"] in listened or _is_rays(own, port), (policy["metadata"]["name"], port)


@pytest.mark.parametrize("name", PROFILES)
def test_the_signing_key_is_for_trainer_and_compiler_alone(name: str) -> None:
    for pod in profile(name).pods():
        volumes = {one["name"] for one in pod.spec["volumes"] if one.get("secret", {}).get("secretName", "").endswith("-signing")}
        for container in pod.containers:
            mounted = {mount["name"] for mount in container.get("volumeMounts", ())} & volumes
            assert bool(mounted) is (container["name"] in ("trainer", "compiler")), (pod.where, container["name"])
        secrets = {one.get("secret", {}).get("secretName", "") for one in pod.spec["volumes"]}
        assert not secrets & {f"{release}-ca" for release in ("atelier", "studio", "atelier-studio")}, pod.where


@pytest.mark.parametrize("name", PROFILES)
def test_every_container_has_resources_and_every_server_probes(name: str) -> None:
    for pod in profile(name).pods():
        for container in pod.own:
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), (pod.where, container["name"])
            assert "memory" in container["resources"]["limits"], (pod.where, container["name"])
        if pod.component in ("control", "server", "trainer", "converter", "compiler"):
            for container in pod.spec["containers"]:
                if container["name"] in ("server", "trainer", "converter", "compiler"):
                    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container), pod.where


@pytest.mark.parametrize("name", PROFILES)
def test_images_have_a_fixed_version(name: str) -> None:
    for pod in profile(name).pods():
        for container in pod.containers:
            image = container["image"]
            assert "@sha256:" in image or (":" in image.rpartition("/")[2] and not image.endswith(":latest")), image


def _is_rays(pods: list[Pod], port: dict[str, Any]) -> bool:
    """Ports that Ray is told by flags, and the range of the processes that it starts; containers do not list them all."""
    of_ray = port["port"] >= 10000 or 6379 <= port["port"] <= 6382
    return of_ray and any(pod.component.startswith("ray-") for pod in pods)
