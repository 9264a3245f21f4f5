"""templates/observability/dashboards.yaml"""

from __future__ import annotations

import json

from chart.rendering import CHART, profile


def test_grafana_s_sidecar_finds_every_dashboard() -> None:
    found = profile("ha").one("ConfigMap", "atelier-dashboards")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"] == {"grafana_folder": "Atelier"}
    assert {name: json.loads(text) for name, text in found["data"].items()} == {
        path.name: json.loads(path.read_text()) for path in (CHART / "dashboards").glob("*.json")
    }
    assert "atelier-dashboards" not in profile("default").names("ConfigMap")
