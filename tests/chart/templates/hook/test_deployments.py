"""templates/hook/deployments.yaml"""

from __future__ import annotations

from chart.rendering import profile, render


def test_an_install_puts_the_model_on_board_into_service_and_an_upgrade_nothing() -> None:
    job = profile("default").one("Job", "atelier-deployments")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "post-install"
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["args"][1:] == ["deploy", "base", "base", ""] and "atelier deploy" in container["args"][0]


def test_each_deployment_goes_to_its_pool() -> None:
    [container] = profile("ha").one("Job", "atelier-deployments")["spec"]["template"]["spec"]["containers"]
    assert container["args"][2:] == ["base", "base", "pools/first"]


def test_it_calls_as_a_client_with_a_token_and_no_right_to_the_api_server() -> None:
    [container] = profile("default").one("Job", "atelier-deployments")["spec"]["template"]["spec"]["containers"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert environment["ATELIER_SERVER"] == "https://atelier:7878" and environment["ATELIER_CA_FILE"] == "/etc/atelier/ca/ca.crt"
    pod = profile("default").one("Job", "atelier-deployments")["spec"]["template"]["spec"]
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("atelier-client", False)


def test_there_is_no_hook_where_nothing_is_to_be_deployed() -> None:
    assert "atelier-deployments" not in render({"deployments": []}).names("Job")
