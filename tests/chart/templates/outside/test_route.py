"""templates/outside/route.yaml"""

from __future__ import annotations

from chart.rendering import profile, render

ROUTE = {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["atelier.example.org"]}


def test_a_gateway_passes_grpc_on_to_the_one_service() -> None:
    route = profile("openshift").one("GRPCRoute", "atelier")["spec"]
    assert route["hostnames"] == ["atelier.example.org"]
    assert route["rules"] == [{"backendRefs": [{"name": "atelier", "port": 7878}]}]


def test_it_speaks_tls_to_it_and_trusts_the_release_s_authority() -> None:
    policy = render({"grpcRoute": ROUTE}).one("BackendTLSPolicy", "atelier")
    assert policy["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert policy["spec"]["targetRefs"] == [{"group": "", "kind": "Service", "name": "atelier"}]
    validation = policy["spec"]["validation"]
    assert validation["caCertificateRefs"] == [{"group": "", "kind": "ConfigMap", "name": "atelier-public"}]
    hosts = render({"grpcRoute": ROUTE}).pod("credentials").container("credentials")["args"]
    assert f"--host={validation['hostname']}" in hosts


def test_the_policy_can_be_older_or_left_out() -> None:
    older = render({"grpcRoute": {**ROUTE, "backendTls": {"apiVersion": "gateway.networking.k8s.io/v1alpha3", "caConfigMap": "company"}}})
    policy = older.one("BackendTLSPolicy", "atelier")
    assert policy["apiVersion"].endswith("v1alpha3") and policy["spec"]["validation"]["caCertificateRefs"][0]["name"] == "company"
    assert not render({"grpcRoute": {**ROUTE, "backendTls": {"enabled": False}}}).all("BackendTLSPolicy")
    assert not profile("default").all("GRPCRoute")
