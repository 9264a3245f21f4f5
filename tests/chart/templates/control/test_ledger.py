"""templates/control/ledger.yaml"""

from __future__ import annotations

import base64
from collections.abc import Mapping

from chart.rendering import profile, render


def test_a_url_in_values_is_put_into_a_secret_and_read_from_there() -> None:
    rendered = profile("everything")
    secret = rendered.one("Secret", "atelier-studio-ledger")
    assert base64.b64decode(secret["data"]["url"]) == b"postgresql://atelier:secret@postgres/atelier"
    for container in rendered.pod("server").containers[1:3]:
        assert "postgresql://" not in str(container)
    [ledger] = [one for one in rendered.pod("server").container("server")["env"] if one["name"] == "ATELIER_LEDGER"]
    assert ledger["valueFrom"]["secretKeyRef"] == {"name": "atelier-studio-ledger", "key": "url"}


def test_a_secret_that_is_there_is_read_under_its_own_key() -> None:
    assert not profile("ha").all("Secret")
    [ledger] = [one for one in profile("ha").pod("trainer").container("trainer")["env"] if one["name"] == "ATELIER_LEDGER"]
    assert ledger["valueFrom"]["secretKeyRef"] == {"name": "atelier-postgres", "key": "url"}
    assert not profile("default").all("Secret")


def test_another_url_starts_the_pods_again() -> None:
    def annotations(password: str) -> Mapping[str, str]:
        url = f"postgresql://atelier:{password}@db/atelier"
        return render({"ledger": {"url": url}, "store": {"url": "s3://a"}}).pod("server").annotations

    assert annotations("old") != annotations("new") and "old" not in str(annotations("old"))
