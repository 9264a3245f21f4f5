"""templates/network/callers.yaml"""

from __future__ import annotations

from chart.rendering import profile, render


def test_nobody_calls_workers_hooks_and_tests() -> None:
    for name in ("atelier-worker", "atelier-client", "atelier-credentials"):
        policy = profile("default").one("NetworkPolicy", name)["spec"]
        assert policy["policyTypes"] == ["Ingress", "Egress"] and "ingress" not in policy


def test_the_hook_s_policy_is_there_before_its_pod() -> None:
    assert profile("default").one("NetworkPolicy", "atelier-credentials")["metadata"]["annotations"]["helm.sh/hook-weight"] == "-10"


def test_a_worker_calls_its_service_and_the_store_where_it_is_told_of_one() -> None:
    def ports(name: str) -> list[int]:
        rules = profile(name).one("NetworkPolicy", "atelier-worker")["spec"]["egress"]
        return [port["port"] for rule in rules for port in rule["ports"] if port["port"] != 53]

    assert ports("default") == [7889, 7890, 7891] and ports("ha") == [7889, 7890, 7891, 443]


def test_only_pods_with_a_role_reach_the_api_server() -> None:
    values = {"networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1/32"], "ports": [6443]}}}
    there = {
        policy["metadata"]["name"]
        for policy in render(values).all("NetworkPolicy")
        if {"to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}], "ports": [{"port": 6443, "protocol": "TCP"}]} in policy["spec"]["egress"]
    }
    assert there == {"atelier-control", "atelier-credentials"}


def test_addresses_that_hand_out_a_machine_s_credentials_are_never_meant_by_anywhere() -> None:
    for name in ("default", "ha", "kuberay"):
        for policy in profile(name).all("NetworkPolicy"):
            for rule in policy["spec"]["egress"]:
                for peer in rule["to"]:
                    if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0":
                        assert "169.254.169.254/32" in peer["ipBlock"]["except"]


def test_policies_can_be_left_out_and_the_notes_warn() -> None:
    assert not render({"networkPolicy": {"enabled": False}}).all("NetworkPolicy")
