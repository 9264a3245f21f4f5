"""templates/control/autoscaler.yaml"""

from __future__ import annotations

from chart.rendering import profile


def test_one_party_alone_sets_the_number_of_servers() -> None:
    rendered = profile("ha")
    scaler = rendered.one("HorizontalPodAutoscaler", "atelier-server")
    assert scaler["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "atelier-server"}
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (2, 5)
    assert "replicas" not in rendered.one("Deployment", "atelier-server")["spec"]
    assert rendered.one("Deployment", "atelier-trainer")["spec"]["replicas"] == 2
    # A share of the request can be computed only where there is one.
    assert rendered.pod("server").container("server")["resources"]["requests"]["cpu"]


def test_there_is_none_unless_it_is_asked_for() -> None:
    assert not profile("default").all("HorizontalPodAutoscaler") and not profile("everything").all("HorizontalPodAutoscaler")
