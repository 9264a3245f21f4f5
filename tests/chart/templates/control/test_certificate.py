"""templates/control/certificate.yaml"""

from __future__ import annotations

from chart.rendering import profile, render


def test_cert_manager_makes_the_certificate_for_every_name_that_clients_use() -> None:
    rendered = profile("openshift")
    certificate = rendered.one("Certificate", "atelier-tls")["spec"]
    assert certificate["secretName"] == "atelier-tls" and certificate["issuerRef"] == {"kind": "ClusterIssuer", "name": "company"}
    assert {"localhost", "atelier", "atelier-trainer.studio.svc.cluster.local", "atelier.example.org"} <= set(certificate["dnsNames"])
    assert {"server auth", "client auth"} <= set(certificate["usages"])
    credentials = rendered.pod("credentials").container("credentials")["args"]
    assert "--no-tls" in credentials and "--public-ca-from-secret=atelier-tls" in credentials


def test_with_mtls_it_makes_one_to_be_shown_as_well() -> None:
    rendered = profile("openshift")
    assert rendered.one("Certificate", "atelier-client-tls")["spec"]["usages"] == ["digital signature", "key encipherment", "client auth"]
    assert rendered.pod("ray-node").volume("client")["secret"]["secretName"] == "atelier-client-tls"


def test_it_makes_none_that_there_is_already() -> None:
    manager = {"enabled": True, "issuerRef": {"name": "company"}}
    given = render({"tls": {"certManager": manager, "mutual": {"caSecret": "a", "clientSecret": "b"}}})
    assert given.names("Certificate") == {"atelier-tls"} and not profile("default").all("Certificate")
