"""templates/control/roles.yaml"""

from __future__ import annotations

from typing import Any

import pytest
from chart.rendering import Rendered, profile, render


def may(rendered: Rendered, account: str) -> set[str]:
    """`verb group/resource/name` of all rules."""
    found = set()
    for rule in rendered.one("Role", account)["rules"]:
        for resource in rule["resources"]:
            for name in rule.get("resourceNames", ["*"]):
                found |= {f"{verb} {rule['apiGroups'][0]}/{resource}/{name}" for verb in rule["verbs"]}
    return found


LOOK = {f"{verb} /{resource}/*" for resource in ("pods", "events") for verb in ("get", "list", "watch")}
JOBS = {f"{verb} batch/jobs/*" for verb in ("create", "get", "list", "watch", "delete")}
JOBS |= {"get /pods/log/*", "get /configmaps/atelier-workers"}


def scale(*pools: str) -> set[str]:
    return {f"patch apps/deployments/scale/atelier-pool-{pool}" for pool in pools}


def test_each_service_may_what_it_does_and_no_more() -> None:
    assert may(profile("default"), "atelier-control") == LOOK | JOBS | scale("cpu")
    assert may(profile("ha"), "atelier-server") == LOOK | scale("first", "second")
    for service in ("trainer", "converter", "compiler"):
        assert may(profile("ha"), f"atelier-{service}") == LOOK | JOBS


def test_nobody_scales_what_an_operator_scales_or_what_has_no_nodes() -> None:
    assert may(profile("kuberay"), "atelier-control") == LOOK | JOBS
    assert may(profile("gpu"), "atelier-control") == LOOK | JOBS | scale("a10", "h100", "mig", "claimed")


def test_nobody_reads_secrets_or_writes_roles_but_the_hook_which_reads_its_own() -> None:
    for name in ("default", "ha", "kuberay"):
        for role in profile(name).all("Role"):
            if role["metadata"]["name"] != "atelier-credentials":
                assert "secrets" not in str(role["rules"])
            assert "rbac.authorization.k8s.io" not in str(role["rules"]) and "*" not in str(role["rules"])


@pytest.mark.parametrize("values", [{"rbac": {"create": False}}])
def test_roles_can_be_somebody_else_s(values: dict[str, Any]) -> None:
    assert render(values).names("Role") == render(values).names("RoleBinding") == {"atelier-credentials"}
