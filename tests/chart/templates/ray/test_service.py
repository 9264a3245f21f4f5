"""templates/ray/service.yaml"""

from __future__ import annotations

from chart.rendering import profile, render


def test_nodes_join_a_head_that_is_not_ready_yet() -> None:
    service = profile("default").one("Service", "atelier-ray-head")["spec"]
    assert service["publishNotReadyAddresses"] is True and service["clusterIP"] == "None"
    assert {one["name"]: one["port"] for one in service["ports"]} == {"gcs": 6379, "dashboard": 8265}


def test_the_gateway_finds_only_proxies_that_answer() -> None:
    service = profile("ha").one("Service", "atelier-serve")["spec"]
    assert service["clusterIP"] == "None" and "publishNotReadyAddresses" not in service
    found = {pod.component for pod in profile("ha").pods() if service["selector"].items() <= pod.labels.items()}
    assert found == {"ray-head", "ray-node"}


def test_both_find_the_pods_of_kuberay_as_well() -> None:
    rendered = render({"ray": {"operator": "kuberay"}})
    for name in ("atelier-ray-head", "atelier-serve"):
        selector = rendered.one("Service", name)["spec"]["selector"].items()
        assert [pod for pod in rendered.pods() if selector <= pod.labels.items() and "RayCluster" in pod.where]
