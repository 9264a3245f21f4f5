"""The chart's own page and package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chart import helm
from chart.rendering import CHART


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
