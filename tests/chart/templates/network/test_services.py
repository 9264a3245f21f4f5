"""templates/network/services.yaml"""

from __future__ import annotations

from chart.rendering import profile


def test_each_internal_port_is_for_its_own_callers() -> None:
    callers = {}
    for rule in profile("default").one("NetworkPolicy", "atelier-control")["spec"]["ingress"]:
        for port in rule["ports"]:
            callers[port["port"]] = rule.get("from", "anybody")
    assert callers.pop(7878) == "anybody"
    assert callers.pop(7888)[0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "ray-node"
    for port, service in ((7889, "trainer"), (7890, "converter"), (7891, "compiler")):
        [peer] = callers.pop(port)
        labels = peer["podSelector"]["matchLabels"]
        assert (labels["app.kubernetes.io/component"], labels["atelier.dev/service"]) == ("worker", service)
    assert not callers  # health is asked by the kubelet, metrics by nobody


def test_clients_can_be_named_and_the_release_s_own_stay_among_them() -> None:
    [rule] = [
        rule
        for rule in profile("airgap").one("NetworkPolicy", "studio-control")["spec"]["ingress"]
        if rule["ports"] == [{"port": 7878, "protocol": "TCP"}]
    ]
    own, theirs = rule["from"]
    assert own["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "client"
    assert theirs == {"namespaceSelector": {"matchLabels": {"example.org/may-call": "atelier"}}}


def test_scaled_out_the_server_passes_on_and_nobody_else_calls_those_ports() -> None:
    for offset, service in enumerate(("trainer", "converter", "compiler"), start=1):
        rules = profile("ha").one("NetworkPolicy", f"atelier-{service}")["spec"]["ingress"]
        [passed] = [rule["from"] for rule in rules if {"port": 7878 + offset, "protocol": "TCP"} in rule["ports"]]
        assert passed[0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "server"


def test_metrics_are_for_prometheus_where_there_is_one() -> None:
    def readers(name: str, policy: str) -> list[object]:
        rules = profile(name).one("NetworkPolicy", policy)["spec"]["ingress"]
        return [rule["from"] for rule in rules if {"port": 7858, "protocol": "TCP"} in rule["ports"]]

    assert readers("default", "atelier-control") == [] and readers("ha", "atelier-server") == [[{"namespaceSelector": {}}]]
    assert readers("airgap", "studio-control") == [[{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]]


def test_where_ledger_store_and_dns_are_can_be_said() -> None:
    rules = profile("airgap").one("NetworkPolicy", "studio-control")["spec"]["egress"]
    assert rules[0]["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}]
    assert rules[-1] == {"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}], "ports": [{"port": 443, "protocol": "TCP"}]}
