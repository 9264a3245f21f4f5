"""What the chart writes is what the program reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from atelier.kubernetes.manifest import read_manifests
from atelier.pools import read_pools
from atelier.server.replica_settings import ReplicaSettings
from atelier.settings import SERVICES, Settings
from chart.rendering import PROFILES, WORKERS, profile


@pytest.mark.parametrize("name", PROFILES)
def test_pools_and_replicas_settings_are_read(name: str, tmp_path: Path) -> None:
    files = profile(name).pools()
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    pools = read_pools(tmp_path / "pools.json")
    assert pools
    for pool in pools:
        settings = ReplicaSettings.read(tmp_path / f"replica-{pool.name}.json")
        assert (settings.pool, settings.gpu, settings.threads) == (pool.name, pool.label, pool.num_cpus)


@pytest.mark.parametrize("name", PROFILES)
def test_deployments_of_pools_are_rendered_where_the_server_scales_them(name: str, tmp_path: Path) -> None:
    (tmp_path / "pools.json").write_text(profile(name).pools()["pools.json"])
    named = {pool.deployment for pool in read_pools(tmp_path / "pools.json") if pool.deployment}
    nodes = {one["metadata"]["name"] for one in profile(name).all("Deployment") if "-pool-" in one["metadata"]["name"]}
    assert named == nodes
    scaled = named | {one["spec"]["scaleTargetRef"]["name"] for one in profile(name).all("HorizontalPodAutoscaler")}
    for one in profile(name).all("Deployment"):
        assert ("replicas" in one["spec"]) is (one["metadata"]["name"] not in scaled)


@pytest.mark.parametrize("name", PROFILES)
def test_workers_manifests_are_read(name: str, tmp_path: Path) -> None:
    (maps,) = (one for one in profile(name).all("ConfigMap") if one["metadata"]["name"].endswith("-workers"))
    for file, content in maps["data"].items():
        (tmp_path / file).write_text(content)
    manifests = read_manifests(tmp_path, WORKERS)
    for service, manifest in manifests.items():
        labels = manifest["metadata"]["labels"]
        assert labels["atelier.dev/service"] == service and labels["app.kubernetes.io/instance"]
        assert manifest["metadata"]["ownerReferences"][0]["name"] == maps["metadata"]["name"]


@pytest.mark.parametrize("name", PROFILES)
def test_services_understand_their_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    containers = [container for pod in profile(name).pods() for container in pod.own if container["name"] in SERVICES]
    assert {container["name"] for container in containers} == set(SERVICES)
    for container in containers:
        given = {one["name"]: one.get("value", "postgresql://from@a/secret") for one in container["env"]}
        with monkeypatch.context() as patched:
            for variable, value in given.items():
                patched.setenv(variable, value)
            settings = Settings()
        known = {f"ATELIER_{field.upper()}" for field in Settings.model_fields}
        assert {variable for variable in given if variable.startswith("ATELIER_")} <= known, container["name"]
        assert settings.tls is not None and (settings.signing_key_file is not None) is (container["name"] in ("trainer", "compiler"))
