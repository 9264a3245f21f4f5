"""templates/tests/picture.yaml"""

from __future__ import annotations

from chart.rendering import profile, render


def test_helm_test_draws_with_what_a_client_has() -> None:
    pod = profile("default").one("Pod", "atelier-test")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    [container] = pod["spec"]["containers"]
    assert "atelier generate" in container["args"][0] and container["args"][1:] == ["picture", "base"]
    assert pod["spec"]["restartPolicy"] == "Never" and pod["spec"]["automountServiceAccountToken"] is False


def test_where_nothing_is_deployed_it_only_asks() -> None:
    [container] = render({"deployments": []}).one("Pod", "atelier-test")["spec"]["containers"]
    assert container["args"][1:] == ["picture", ""]
