"""templates/observability/rules.yaml"""

from __future__ import annotations

from chart.rendering import CHART, profile


def test_alerts_look_at_this_release_s_namespace_alone() -> None:
    rule = profile("ha").one("PrometheusRule", "atelier")
    rules = [one for group in rule["spec"]["groups"] for one in group["rules"]]
    assert rules and all('namespace="studio"' in one["expr"] for one in rules)
    assert 'namespace="atelier"' not in str(rule["spec"])


def test_what_prometheus_fills_in_is_left_to_it() -> None:
    shown = str(profile("ha").one("PrometheusRule", "atelier")["spec"])
    assert shown.count("{{") == (CHART / "rules.yaml").read_text().count("{{") > 0
    assert not profile("default").all("PrometheusRule")
