"""templates/control/pools.yaml"""

from __future__ import annotations

import json

from chart.rendering import profile, render


def test_cpus_of_a_replica_are_the_limit_rounded_down_and_at_least_one() -> None:
    limits = {"a": "7500m", "b": "500m", "c": 3, "d": "2.9", "e": "1e1"}
    values = {
        "deployments": [],
        "pools": [{"name": name, "resources": {"limits": {"cpu": limit}}} for name, limit in limits.items()]
        + [{"name": "f", "resources": {"requests": {"cpu": "4"}}}],
    }
    rendered = render(values)
    found = {pool["name"]: pool["numCpus"] for pool in json.loads(rendered.pools()["pools.json"])}
    assert found == {"a": 7, "b": 1, "c": 3, "d": 2, "e": 10, "f": 1}
    for pod in rendered.pods("ray-node"):
        assert f"--num-cpus={found[pod.labels['atelier.dev/pool']]}" in pod.container("ray-node")["args"]


def test_services_and_replicas_are_told_the_same_names() -> None:
    rendered = profile("airgap")
    assert set(rendered.pools()) == {"pools.json", "replica-cpu.json"}
    replica = json.loads(rendered.pools()["replica-cpu.json"])
    assert replica["internal_target"] == "studio-server:7888" and "studio-server" in rendered.names("Service")
    mounts = rendered.pod("ray-node").mounts("ray-node")
    assert {mounts["replica"], mounts["cache"], mounts["public"], mounts["internal"]} == {
        "/etc/atelier/replica", replica["cache"], "/etc/atelier/public", "/etc/atelier/internal",
    }  # fmt: skip


def test_no_secret_stands_in_it() -> None:
    for name in ("ha", "everything"):
        for content in profile(name).pools().values():
            assert "postgresql" not in content and "secret@" not in content
