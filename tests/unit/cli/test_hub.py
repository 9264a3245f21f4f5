"""Hugging Face repositories by name, from this machine's cache: which commit it was is recorded."""

from __future__ import annotations

import json

import pytest
from fake_files import model
from fake_shell import Shell


@pytest.fixture
def hub(shell: Shell) -> Shell:
    root = shell.folder / "hub" / "models--org--sd"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    model(root / "snapshots" / "abc")
    return shell


@pytest.mark.parametrize("revision", ["", "--revision abc", "--revision main"])
def test_import_records_repository_and_commit(hub: Shell, revision: str) -> None:
    assert hub(f"--json artifacts import org/sd --tag sd {revision}") == 0
    assert json.loads(hub.out)["metadata"] == {"repository": "org/sd", "revision": "abc"}


def test_a_command_that_takes_a_model_records_them_too(hub: Shell) -> None:
    assert hub("convert org/sd --to single-file --validate-only") == 0
    (request,) = hub.fake.requests("Convert")
    assert hub(f"--json artifacts get {request.source}") == 0
    assert json.loads(hub.out)["metadata"] == {"repository": "org/sd", "revision": "abc"}


def test_a_repository_that_is_nowhere_says_how_to_fetch_it(shell: Shell) -> None:
    assert shell("convert org/sd --to single-file") == 1
    assert "atelier artifacts import org/sd --allow-download" in shell.err and shell.err.count("\n") == 1
