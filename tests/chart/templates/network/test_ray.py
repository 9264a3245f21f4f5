"""templates/network/ray.yaml"""

from __future__ import annotations

from typing import Any

from chart.rendering import profile

INSIDE = {6379, 6380, 6381, 6382, 52365, 52366, 10100}
EVENTS = {8265}
"""Where a node tells the head's dashboard what has happened to it."""


def ingress(name: str, policy: str) -> dict[str, set[int]]:
    """Component that calls -> ports."""
    found: dict[str, set[int]] = {}
    for rule in profile(name).one("NetworkPolicy", policy)["spec"]["ingress"]:
        for peer in rule["from"]:
            component = peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/component", "*")
            found.setdefault(component, set()).update(port["port"] for port in rule["ports"])
    return found


def test_ray_s_own_ports_are_for_ray_alone() -> None:
    assert ingress("default", "atelier-ray-head") == {"control": {8265, 9000}, "ray-node": INSIDE | EVENTS}
    assert ingress("default", "atelier-ray-node") == {"control": {9000}, "ray-head": INSIDE, "ray-node": INSIDE}


def test_only_the_server_deploys_and_generates_and_prometheus_reads() -> None:
    assert ingress("ha", "atelier-ray-head") == {"server": {8265, 9000}, "ray-node": INSIDE | EVENTS, "*": {8080}}


def test_no_rule_is_without_a_peer() -> None:
    for policy in profile("ha").all("NetworkPolicy"):
        rules: list[dict[str, Any]] = policy["spec"].get("ingress", [])
        # Clients of the public port come from anywhere, unless `networkPolicy.clients` names them.
        assert all(rule.get("from") or rule["ports"] == [{"port": 7878, "protocol": "TCP"}] for rule in rules)


def test_replicas_report_to_the_server_and_fetch_from_the_store() -> None:
    def egress(name: str) -> set[int]:
        rules = profile(name).one("NetworkPolicy", "atelier-ray-node")["spec"]["egress"]
        return {port["port"] for rule in rules for port in rule["ports"]}

    assert egress("default") == INSIDE | EVENTS | {53, 7888} and egress("ha") == INSIDE | EVENTS | {53, 7888, 443}


def test_the_head_reaches_the_api_server_only_beside_an_autoscaler() -> None:
    def ports(name: str) -> set[int]:
        rules = profile(name).one("NetworkPolicy", "atelier-ray-head")["spec"]["egress"]
        return {port["port"] for rule in rules for port in rule["ports"]}

    assert 6443 not in ports("default") and 6443 in ports("kuberay")
