"""templates/control/service.yaml"""

from __future__ import annotations

from chart.rendering import profile, render


def test_clients_have_one_address_and_it_leads_to_the_server() -> None:
    for name, component in (("default", "control"), ("ha", "server")):
        service = profile(name).one("Service", "atelier")["spec"]
        assert service["selector"]["app.kubernetes.io/component"] == component
        assert [(one["port"], one["targetPort"], one["appProtocol"]) for one in service["ports"]] == [(7878, "server", "https")]


def test_it_can_be_a_load_balancer_or_a_port_of_nodes() -> None:
    balanced = profile("ha").one("Service", "atelier")["spec"]
    assert (balanced["type"], balanced["loadBalancerSourceRanges"], balanced["externalTrafficPolicy"]) == (
        "LoadBalancer",
        ["10.0.0.0/8"],
        "Local",
    )
    [port] = profile("everything").one("Service", "atelier-studio")["spec"]["ports"]
    assert (port["port"], port["nodePort"], "appProtocol" in port) == (443, 30787, False)
    given = render({"service": {"type": "LoadBalancer", "loadBalancerClass": "internal"}}).one("Service", "atelier")
    assert given["spec"]["loadBalancerClass"] == "internal"


def test_workers_and_replicas_have_addresses_that_no_client_sees() -> None:
    for offset, service in enumerate(("server", "trainer", "converter", "compiler")):
        found = profile("default").one("Service", f"atelier-{service}")["spec"]
        assert found["type"] == "ClusterIP"
        assert {one["name"]: one["port"] for one in found["ports"]} == {
            "grpc": 7878 + offset, "internal": 7888 + offset, "metrics": 7858 + offset,
        }  # fmt: skip
