"""templates/hook/credentials.yaml"""

from __future__ import annotations

from chart.rendering import Rendered, profile, render


def names(rendered: Rendered) -> set[str]:
    rules = rendered.one("Role", "atelier-credentials")["rules"]
    return {name for rule in rules for name in rule.get("resourceNames", ())}


def test_it_runs_before_all_else_with_what_it_needs_for_that() -> None:
    hooks = {}
    for one in profile("default").objects:
        if "helm.sh/hook" in one["metadata"].get("annotations", {}) and one["metadata"]["name"] == "atelier-credentials":
            hooks[one["kind"]] = one["metadata"]["annotations"]
    assert set(hooks) == {"Job", "ServiceAccount", "Role", "RoleBinding", "NetworkPolicy"}
    for kind, said in hooks.items():
        assert said["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert said["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
        assert int(said.get("helm.sh/hook-weight", 0)) == (0 if kind == "Job" else -10)


def test_it_may_touch_its_own_objects_by_name_alone() -> None:
    assert names(profile("default")) == {
        "atelier-ca", "atelier-tls", "atelier-token", "atelier-internal", "atelier-ray", "atelier-signing", "atelier-public",
    }  # fmt: skip
    for rule in profile("default").one("Role", "atelier-credentials")["rules"]:
        assert rule["resourceNames"] and set(rule["verbs"]) <= {"get", "create", "patch"}
    assert "atelier-ray-ca" in names(render({"ray": {"tls": True}}))


def test_what_the_operator_brings_it_neither_makes_nor_writes() -> None:
    rendered = render({"tls": {"existingSecret": "wildcard"}, "auth": {"existingSecret": "tokens"}})
    assert {"--no-tls", "--no-token", "--public-ca-from-secret=wildcard"} <= set(
        rendered.pod("credentials").container("credentials")["args"]
    )
    assert not {"atelier-ca", "atelier-tls", "atelier-token"} & names(rendered)
    [read] = [one for one in rendered.one("Role", "atelier-credentials")["rules"] if "wildcard" in one["resourceNames"]]
    assert read["verbs"] == ["get"]


def test_the_certificate_is_for_every_name_that_clients_use() -> None:
    values = {
        "ingress": {"enabled": True, "host": "a.example.org"},
        "grpcRoute": {"enabled": True, "parentRefs": [{"name": "g"}], "hostnames": ["b.example.org"]},
        "tls": {"extraHosts": ["10.1.2.3"]},
    }
    hosts = {
        word.removeprefix("--host=") for word in render(values).pod("credentials").container("credentials")["args"] if "--host=" in word
    }
    services = {"atelier", "atelier-server", "atelier-trainer", "atelier-converter", "atelier-compiler"}
    inside = {f"{service}{rest}" for service in services for rest in ("", ".studio", ".studio.svc", ".studio.svc.cluster.local")}
    assert hosts == inside | {"localhost", "a.example.org", "b.example.org", "10.1.2.3"}


def test_it_can_be_left_out() -> None:
    rendered = render({"credentials": {"create": False}})
    assert not [one for one in rendered.objects if one["metadata"]["name"] == "atelier-credentials"]
