"""templates/observability/monitors.yaml"""

from __future__ import annotations

from chart.rendering import profile


def test_prometheus_finds_the_four_services_and_none_twice() -> None:
    rendered = profile("ha")
    selector = rendered.one("ServiceMonitor", "atelier")["spec"]["selector"]["matchLabels"].items()
    found = {one["metadata"]["name"] for one in rendered.all("Service") if selector <= one["metadata"]["labels"].items()}
    assert found == {"atelier-server", "atelier-trainer", "atelier-converter", "atelier-compiler"}
    for name in found:
        assert "metrics" in {port["name"] for port in rendered.one("Service", name)["spec"]["ports"]}


def test_it_finds_ray_s_pods_with_their_pool() -> None:
    monitor = profile("ha").one("PodMonitor", "atelier-ray")
    pods = [pod for pod in profile("ha").pods() if monitor["spec"]["selector"]["matchLabels"].items() <= pod.labels.items()]
    assert {pod.component for pod in pods} == {"ray-head", "ray-node"}
    assert all("metrics" in {port["name"] for port in pod.own[-1]["ports"]} for pod in pods)
    assert monitor["spec"]["podTargetLabels"] == ["atelier.dev/pool", "atelier.dev/gpu"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_there_are_none_unless_they_are_asked_for() -> None:
    assert not profile("default").all("ServiceMonitor") and not profile("default").all("PodMonitor")
