"""What an operator writes into the environment is read, or refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from atelier.errors import AtelierError
from atelier.settings import read


def test_what_is_given_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATELIER_LISTEN", "127.0.0.1:1")
    monkeypatch.setenv("ATELIER_IMPORT_ROOTS", '["/models"]')
    settings = read(data=tmp_path, listen="[::1]:0")
    assert settings.listen == "[::1]:0" and settings.import_roots == [Path("/models")]


@pytest.mark.parametrize("listen", ["7878", "localhost", ":7878", "127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:"])
def test_an_address_is_a_host_and_a_port(listen: str, tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match=r"ATELIER_LISTEN: '.*' is no host:port"):
        read(data=tmp_path, listen=listen)


def test_all_variables_that_cannot_be_used_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATELIER_MAX_WORKERS", "many")
    monkeypatch.setenv("ATELIER_SERVE_PORT", "x")
    with pytest.raises(AtelierError) as caught:
        read(data=tmp_path)
    assert [violation.field for violation in caught.value.violations] == ["ATELIER_MAX_WORKERS", "ATELIER_SERVE_PORT"]


def test_a_list_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATELIER_IMPORT_ROOTS", "/models")
    with pytest.raises(AtelierError, match="ATELIER_IMPORT_ROOTS"):
        read(data=tmp_path)
