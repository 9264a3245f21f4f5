"""templates/outside/ingress.yaml"""

from __future__ import annotations

from chart.rendering import profile


def test_it_leads_to_the_one_service_over_tls() -> None:
    ingress = profile("everything").one("Ingress", "atelier-studio")
    assert ingress["spec"]["tls"] == [{"hosts": ["studio.example.org"], "secretName": "studio-tls"}]
    [rule] = ingress["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert (rule["host"], path["path"], path["pathType"]) == ("studio.example.org", "/", "Prefix")
    assert path["backend"]["service"] == {"name": "atelier-studio", "port": {"name": "grpc"}}
    assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/backend-protocol"] == "GRPCS"
    assert not profile("default").all("Ingress")
