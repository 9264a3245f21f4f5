"""The chart's own page and package."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from chart import helm
from chart.rendering import CHART, profile


def test_the_readme_says_what_the_values_say() -> None:
    subprocess.run([sys.executable, str(CHART.parent / "generate_readme.py"), "--check"], check=True)


@pytest.mark.parametrize("version", [3, 4])
def test_lint_finds_nothing(version: int) -> None:
    for values in sorted((CHART / "ci").glob("*.yaml")):
        done = subprocess.run([helm.program(version), "lint", "--strict", str(CHART), "-f", str(values)], capture_output=True, text=True)
        assert done.returncode == 0 and "[WARNING]" not in done.stdout, (values.name, done.stdout + done.stderr)


def test_it_can_be_packaged(tmp_path: Path) -> None:
    subprocess.run([helm.program(4), "package", str(CHART), "-d", str(tmp_path)], check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["atelier-0.1.0.tgz"]


def test_its_card_says_what_is_in_it() -> None:
    card = yaml.safe_load((CHART / "Chart.yaml").read_text())
    images = {one["image"] for one in yaml.safe_load(card["annotations"]["artifacthub.io/images"])}
    assert images == {container["image"] for pod in profile("default").pods() for container in pod.containers}
    assert card["appVersion"] == tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text())["project"]["version"]
    lock = (CHART.parents[1] / "constraints.txt").read_text()
    assert f"\nray=={card['annotations']['atelier.dev/ray-version']} " in lock
    assert card["icon"].startswith("data:image/svg+xml;base64,") and yaml.safe_load(card["annotations"]["artifacthub.io/changes"])
