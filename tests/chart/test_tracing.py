"""Traces: who sends them is told where to, and is let there; nobody else."""

from __future__ import annotations

from chart.rendering import Rendered, profile, render


def told(rendered: Rendered) -> set[str]:
    """Components with a container that sends spans."""
    variables = {pod.component: {one["name"] for container in pod.own for one in container.get("env", ())} for pod in rendered.pods()}
    return {component for component, names in variables.items() if "OTEL_EXPORTER_OTLP_ENDPOINT" in names}


def let(rendered: Rendered, port: int) -> set[str]:
    """Components that a policy lets out to the port."""
    found = set()
    for policy in rendered.all("NetworkPolicy"):
        ports = {one["port"] for rule in policy["spec"].get("egress", ()) for one in rule["ports"]}
        found |= {policy["metadata"]["labels"]["app.kubernetes.io/component"]} if port in ports else set()
    return found


def test_services_and_replicas_send_spans_and_workers_do_not() -> None:
    rendered = render({"tracing": {"endpoint": "http://collector:4317", "ratio": 0.25}})
    assert told(rendered) == {"control", "ray-head", "ray-node"}
    assert let(rendered, 4317) == {"control", "ray-node"}
    environment = {one["name"]: one.get("value") for pod in rendered.pods() if pod.component == "ray-node" for one in pod.own[-1]["env"]}
    assert environment["OTEL_TRACES_SAMPLER"] == "parentbased_traceidratio" and environment["OTEL_TRACES_SAMPLER_ARG"] == "0.25"


def test_the_collector_may_be_named_to_the_policies() -> None:
    there = [{"namespaceSelector": {"matchLabels": {"name": "observability"}}}]
    rendered = render({"tracing": {"endpoint": "https://collector:443"}, "networkPolicy": {"tracing": {"to": there, "ports": [443]}}})
    policy = rendered.one("NetworkPolicy", "atelier-ray-node")
    assert {"to": there, "ports": [{"port": 443, "protocol": "TCP"}]} in policy["spec"]["egress"]


def test_nothing_is_sent_unless_it_is_asked_for() -> None:
    assert told(profile("default")) == let(profile("default"), 4317) == set()
