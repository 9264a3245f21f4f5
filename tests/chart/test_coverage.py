"""Every template file has a test of its own, in the folder `templates` beside this file."""

from __future__ import annotations

from pathlib import Path

from chart.rendering import CHART


def test_every_template_has_a_test_of_its_own() -> None:
    templates = {path.relative_to(CHART / "templates") for path in (CHART / "templates").rglob("*") if path.suffix in (".yaml", ".txt")}
    here = Path(__file__).with_name("templates")
    tests = {path.relative_to(here).with_name(path.stem.removeprefix("test_")) for path in here.rglob("test_*.py")}
    assert {path.with_suffix("") for path in templates} == tests
