"""Objects of kinds that Kubernetes does not bring follow the schemas of their projects; KubeRay's: templates/ray/test_cluster.py."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from chart.rendering import PROFILES, Object, profile, render

SCHEMAS = Path(__file__).with_name("schemas")
KINDS = {path.stem for path in SCHEMAS.glob("*.json")}
MORE: dict[str, dict[str, Any]] = {
    "a client's certificate by cert-manager": {
        "tls": {"certManager": {"enabled": True, "issuerRef": {"name": "a", "kind": "Issuer", "group": "b"}}, "mutual": {"caSecret": "c"}}
    },
    "a route without hosts": {"grpcRoute": {"enabled": True, "parentRefs": [{"name": "a"}], "annotations": {"a": "b"}}},
    "monitors with intervals": {
        "metrics": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True, "interval": "15s"}, "rules": {"enabled": True}}
    },
}
"""Values that no profile has."""


@cache
def validator(kind: str) -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(json.loads((SCHEMAS / f"{kind}.json").read_text()))


def foreign(objects: list[Object]) -> list[Object]:
    return [one for one in objects if one["kind"] in KINDS]


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_follow_the_schemas(name: str) -> None:
    for one in foreign(profile(name).objects):
        validator(one["kind"]).validate(one)


@pytest.mark.parametrize("case", MORE)
def test_other_values_follow_the_schemas(case: str) -> None:
    found = foreign(render(MORE[case]).objects)
    assert found
    for one in found:
        validator(one["kind"]).validate(one)


def test_every_kind_is_rendered_and_a_field_that_nobody_knows_is_refused() -> None:
    seen = {one["kind"]: one for name in PROFILES for one in foreign(profile(name).objects)}
    assert set(seen) == KINDS
    for kind, one in seen.items():
        wrong = copy.deepcopy(one)
        wrong["spec"]["unknown"] = 1
        with pytest.raises(jsonschema.ValidationError, match="unknown"):
            validator(kind).validate(wrong)
