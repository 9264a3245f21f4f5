"""templates/extra.yaml"""

from __future__ import annotations

from chart.rendering import profile


def test_further_objects_are_yaml_or_text_and_may_hold_templates() -> None:
    rendered = profile("everything")
    assert rendered.one("ConfigMap", "beside")["data"] == {"of": "atelier"}
    assert rendered.one("ConfigMap", "beside")["metadata"]["namespace"] == "studio"
    assert "atelier-studio-more" in rendered.names("ConfigMap")
