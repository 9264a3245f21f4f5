"""The page of errors names every reason that the code gives, and none that it does not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import atelier
from atelier.errors import not_found

ROOT = Path(atelier.__path__[0])
PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
FIRST = ("failed_precondition", "unavailable", "data_loss")
"""Constructors whose first argument is the reason."""


def reasons(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        words = [argument.value if isinstance(argument, ast.Constant) else None for argument in node.args]
        if name in FIRST:
            yield from _words(words[:1])
        elif name == "AtelierError":
            yield from _words(words[1:2])
        elif name == "not_found":
            yield from (f"{word.upper().replace(' ', '_')}_NOT_FOUND" for word in words[:1] if isinstance(word, str))
        if name in ("invalid", "invalid_field"):
            given = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
            yield from _words([value.value for value in given if isinstance(value, ast.Constant)])


def _words(values: list[object]) -> Iterator[str]:
    yield from (value for value in values if isinstance(value, str))


def test_what_is_missing_is_named_where_it_has_a_name() -> None:
    assert str(not_found("job", "jobs/x")) == "there is no job 'jobs/x'"
    assert str(not_found("deployment", "", hint="make one")) == "there is no deployment; make one"


def test_every_reason_is_on_the_page() -> None:
    given = {reason for path in ROOT.rglob("*.py") if "v1" not in path.parts for reason in reasons(ast.parse(path.read_text()))}
    assert len(given) > 40
    assert sorted(given - set(re.findall(r"[A-Z][A-Z0-9_]+", PAGE.read_text()))) == []


def test_every_reason_of_the_page_is_in_the_code() -> None:
    code = "\n".join(path.read_text() for path in ROOT.rglob("*.py") if "v1" not in path.parts)
    cells = [line.split("|")[2] for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    named = {reason for cell in cells for reason in re.findall(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+", cell)}
    assert sorted(reason for reason in named if not reason.endswith("_NOT_FOUND") and f'"{reason}"' not in code) == []
