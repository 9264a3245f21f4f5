"""NetworkPolicies of every profile: who calls whom stands on both sides, and nothing leads where a machine's credentials are handed out."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from chart.rendering import PROFILES, Pod, Rendered, profile, render

METADATA = ("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254")
"""Where clouds answer a machine, or a pod, that asks who it is."""
INSIDE = {
    ("ray-node", "ray-head", 6379), ("ray-node", "ray-head", 8265), ("ray-head", "ray-node", 10100), ("ray-node", "ray-node", 6381),
    ("ray-node", "{server}", 7888), ("{server}", "ray-head", 8265), ("{server}", "ray-head", 9000), ("{server}", "ray-node", 9000),
    ("client", "{server}", 7878), ("worker", "{trainer}", 7889), ("worker", "{converter}", 7890), ("worker", "{compiler}", 7891),
}  # fmt: skip
"""Caller, called, port: what an installation needs; {server} stands for the component whose pods run it."""
NEVER = {
    ("worker", "ray-head"),
    ("worker", "ray-node"),
    ("worker", "worker"),
    ("client", "ray-head"),
    ("client", "ray-node"),
    ("ray-node", "worker"),
}


def calls(rendered: Rendered, *, egress: bool) -> set[tuple[str, str, int]]:
    """Caller, called, first port of each rule between pods of the release, as one side allows it."""
    found = set()
    for policy in rendered.all("NetworkPolicy"):
        for own in {pod.component for pod in selected(rendered, policy["spec"]["podSelector"])}:
            for rule in policy["spec"].get("egress" if egress else "ingress", ()):
                for other, port in ends(rendered, rule, "to" if egress else "from"):
                    found.add((own, other, port) if egress else (other, own, port))
    return found


def ends(rendered: Rendered, rule: dict[str, Any], key: str) -> Iterator[tuple[str, int]]:
    for peer in rule.get(key, ()):
        if set(peer) == {"podSelector"}:
            for pod in selected(rendered, peer["podSelector"]):
                yield from ((pod.component, port["port"]) for port in rule["ports"])


def selected(rendered: Rendered, selector: dict[str, Any]) -> list[Pod]:
    return [pod for pod in rendered.pods() if selector["matchLabels"].items() <= pod.labels.items()]


@pytest.mark.parametrize("name", PROFILES)
def test_what_one_side_may_call_the_other_side_lets_in(name: str) -> None:
    rendered = profile(name)
    out, into = calls(rendered, egress=True), calls(rendered, egress=False)
    # Where nobody is named as a client, the public port lets everyone in: that rule has no peer.
    everyone = {call for call in out if call[0] == "client"}
    assert out - everyone == into - everyone


@pytest.mark.parametrize("name", PROFILES)
def test_what_an_installation_needs_is_allowed_and_what_nobody_needs_is_not(name: str) -> None:
    rendered = profile(name)
    components = {pod.component for pod in rendered.pods()}
    own = {service: service if service in components else "control" for service in ("server", "trainer", "converter", "compiler")}
    out = calls(rendered, egress=True)
    assert {(one.format(**own), other.format(**own), port) for one, other, port in INSIDE} <= out
    assert not {(one, other) for one, other, _ in out} & NEVER


@pytest.mark.parametrize("name", PROFILES)
def test_nothing_leads_to_the_credentials_of_the_machine(name: str) -> None:
    for policy in profile(name).all("NetworkPolicy"):
        for rule in policy["spec"].get("egress", ()):
            assert rule.get("to"), f"{policy['metadata']['name']}: a rule without a peer allows every address"
            for peer in rule["to"]:
                block = peer.get("ipBlock")
                reached = [one for one in METADATA if block and ip_address(one) in ip_network(block["cidr"])]
                excepted = [ip_network(one) for one in (block or {}).get("except", ())]
                for one in reached:
                    assert any(ip_address(one) in network for network in excepted), (policy["metadata"]["name"], one)


@pytest.mark.parametrize("name", PROFILES)
def test_only_pods_with_a_role_reach_the_api_server(name: str) -> None:
    rendered = profile(name)
    for policy in rendered.all("NetworkPolicy"):
        for pod in selected(rendered, policy["spec"]["podSelector"]):
            ports = {port["port"] for rule in policy["spec"].get("egress", ()) for port in rule["ports"]}
            assert (6443 in ports) is pod.spec["automountServiceAccountToken"], (policy["metadata"]["name"], pod.where)


def test_clients_and_prometheus_are_let_in_as_values_say() -> None:
    clients, prometheus = [{"namespaceSelector": {"matchLabels": {"a": "b"}}}], [{"podSelector": {"matchLabels": {"c": "d"}}}]
    policy = _of_control({"networkPolicy": {"clients": clients, "metrics": prometheus}})
    public = next(rule for rule in policy["ingress"] if rule["ports"][0]["port"] == 7878)
    assert public["from"][1:] == clients
    assert public["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "client"
    metrics = [rule for rule in policy["ingress"] if rule["from"] == prometheus]
    assert {rule["ports"][0]["port"] for rule in metrics} == {7858, 7859, 7860, 7861}


def test_nobody_reads_metrics_unless_a_monitor_or_a_peer_is_asked_for() -> None:
    assert not any(rule["ports"][0]["port"] == 7858 for rule in _of_control({})["ingress"])
    opened = _of_control({"metrics": {"serviceMonitor": {"enabled": True}}})["ingress"]
    assert [rule["from"] for rule in opened if rule["ports"][0]["port"] == 7858] == [[{"namespaceSelector": {}}]]


def test_there_are_no_policies_where_they_are_switched_off() -> None:
    assert not render({"networkPolicy": {"enabled": False}}).all("NetworkPolicy")


def _of_control(values: dict[str, Any]) -> dict[str, Any]:
    return dict(render(values).one("NetworkPolicy", "atelier-control")["spec"])
