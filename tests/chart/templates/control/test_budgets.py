"""templates/control/budgets.yaml"""

from __future__ import annotations

from chart.rendering import profile, render


def test_what_has_more_than_one_pod_loses_one_at_a_time() -> None:
    assert profile("ha").names("PodDisruptionBudget") == {
        "atelier-server", "atelier-trainer", "atelier-converter", "atelier-compiler", "atelier-pool-first", "atelier-pool-second",
    }  # fmt: skip
    for budget in profile("ha").all("PodDisruptionBudget"):
        selector = budget["spec"]["selector"]["matchLabels"].items()
        [deployment] = {pod.where for pod in profile("ha").pods() if selector <= pod.labels.items()}
        assert deployment == f"Deployment {budget['metadata']['name']}"
        assert (budget["spec"]["maxUnavailable"], budget["spec"]["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


def test_a_single_pod_never_blocks_a_drain_of_its_node() -> None:
    assert not profile("default").all("PodDisruptionBudget")
    assert profile("everything").names("PodDisruptionBudget") == {"atelier-studio-server", "atelier-studio-pool-cpu"}


def test_they_can_be_left_out() -> None:
    assert not render({"podDisruptionBudgets": {"enabled": False}, "pools": [{"name": "a", "maxReplicas": 2}]}).all("PodDisruptionBudget")
