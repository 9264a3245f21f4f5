"""What an operator writes into the environment is read, or refused by its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from atelier.errors import AtelierError
from atelier.settings import Settings, read


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


def test_what_others_can_reach_needs_tls_or_a_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ATELIER_LISTEN", "ATELIER_INTERNAL_LISTEN"):
        with monkeypatch.context() as patch:
            for host in ("0.0.0.0", "[::]", "10.0.0.1", "example.org"):
                patch.setenv(name, f"{host}:7878")
                with pytest.raises(AtelierError, match=f"{host}:7878 can be reached by others".replace("[", r"\[")):
                    read(data=tmp_path)
            assert read(data=tmp_path, insecure=True).tls is None
            patch.setenv("ATELIER_TLS_CERT", "/tls/tls.crt")
            with pytest.raises(AtelierError, match="go together"):
                read(data=tmp_path)
            patch.setenv("ATELIER_TLS_KEY", "/tls/tls.key")
            tls = read(data=tmp_path).tls
            assert tls is not None and tls.certificate == Path("/tls/tls.crt") and tls.client_ca is None
    for host in ("127.0.0.1", "localhost", "[::1]", "127.1.2.3"):
        assert read(data=tmp_path, listen=f"{host}:1").listen == f"{host}:1"


def test_this_machine_reaches_itself_by_a_name_that_a_certificate_can_have(tmp_path: Path) -> None:
    plain = read(data=tmp_path, insecure=True)
    encrypted = read(data=tmp_path, tls_cert="/tls/tls.crt", tls_key="/tls/tls.key")
    hosts = ("127.0.0.1", "[::1]", "0.0.0.0", "[::]", "10.1.2.3")
    assert [plain.reached(f"{host}:1") for host in hosts] == ["127.0.0.1", "[::1]", "127.0.0.1", "127.0.0.1", "10.1.2.3"]
    assert [encrypted.reached(f"{host}:1") for host in hosts] == ["localhost"] * 4 + ["10.1.2.3"]


def test_half_of_tls_is_refused_and_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATELIER_TLS_CLIENT_CA", "/tls/ca.crt")
    with pytest.raises(AtelierError, match="need ATELIER_TLS_CERT"):
        read(data=tmp_path)
    monkeypatch.setenv("ATELIER_TLS_CLIENT_CA", "")
    monkeypatch.setenv("ATELIER_HEALTH_LISTEN", "")
    assert read(data=tmp_path).health_listen is None


def test_every_setting_is_on_the_page_and_nothing_else() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    table = page[page.index("| variable |") : page.index("## Ledger")]
    assert set(re.findall(r"`ATELIER_(\w+)`", table)) == {name.upper() for name in Settings.model_fields}
