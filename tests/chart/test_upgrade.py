"""From the released package to the chart as it is: nothing changes that Kubernetes refuses to change, and nothing is lost."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.rendering import PROFILES, Rendered, profile, rendered_from, values_of

RELEASED = Path(__file__).with_name("released")
PACKAGES = sorted(RELEASED.glob("atelier-*.tgz"))


def immutable(one: dict[str, Any]) -> Any:
    """What an object of a kind can never change."""
    spec = one.get("spec", {})
    return {
        "Deployment": lambda: spec["selector"],
        "PersistentVolumeClaim": lambda: {key: spec.get(key) for key in ("accessModes", "storageClassName", "volumeMode")},
        "Service": lambda: spec.get("clusterIP"),
        "RoleBinding": lambda: one["roleRef"],
    }.get(one["kind"], lambda: None)()


def by_name(rendered: Rendered) -> dict[tuple[str, str], Any]:
    return {(one["kind"], one["metadata"]["name"]): immutable(one) for one in rendered.objects}


def released(package: Path, name: str) -> Rendered:
    """What the package renders for a profile, without the values that have come since."""
    with tarfile.open(package) as archive:
        content = archive.extractfile("atelier/values.yaml")
        assert content is not None
        defaults = yaml.safe_load(content)
    return rendered_from(package, _known(values_of(name), defaults))


def _known(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Mappings that are empty by default, such as labels, are the user's own."""
    return {
        key: _known(value, defaults[key]) if isinstance(value, dict) and defaults.get(key) else value
        for key, value in values.items()
        if key in defaults
    }


def test_there_is_a_released_package() -> None:
    assert PACKAGES


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", PROFILES)
def test_an_upgrade_changes_nothing_that_cannot_be_changed(name: str, package: Path) -> None:
    before, now = by_name(released(package, name)), by_name(profile(name))
    changed = {key for key in before.keys() & now.keys() if before[key] != now[key]}
    assert not changed


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", PROFILES)
def test_an_upgrade_keeps_the_volume_and_the_address(name: str, package: Path) -> None:
    before, now = by_name(released(package, name)), by_name(profile(name))
    kept = {key for key in before if key[0] in ("PersistentVolumeClaim", "Service", "ServiceAccount")}
    assert kept <= set(now)
