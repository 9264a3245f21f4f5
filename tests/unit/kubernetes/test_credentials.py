"""The chart's hook against an API server in miniature: what is missing is made, what is there stays."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from api_server import NAMESPACE, ApiServer
from hook_scene import HOSTS, LABELS, WORDS, Cluster, kubeconfig

from atelier.artifacts.signing import new_key, public_of
from atelier.certificates import Authority, Pair, hosts_of
from atelier.kubernetes.credentials import Wanted, provide
from atelier.kubernetes.objects import Objects


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Cluster]:
    """A namespace with nothing in it, which KUBECONFIG names."""
    caplog.set_level(logging.INFO, logger="atelier.credentials")
    with ApiServer().running() as api:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, api.port)))
        yield Cluster(api)


def test_a_new_release_gets_all_that_it_needs(cluster: Cluster) -> None:
    cluster.hook()
    names = {f"studio-{one}" for one in ("ca", "tls", "token", "internal", "ray", "signing", "public")}
    assert set(cluster.everything) == names
    assert all(one["metadata"]["labels"] == LABELS for one in cluster.everything.values())
    types = {name for name, one in cluster.everything.items() if one["type"] == "kubernetes.io/tls"}
    assert types == {"studio-ca", "studio-tls"}
    assert hosts_of(cluster.issued()) == set(HOSTS)
    tokens = {cluster.data(f"studio-{one}")["token"] for one in ("token", "internal", "ray")}
    assert len(tokens) == 3 and all(len(token) == 43 for token in tokens)
    ca = cluster.data("studio-ca")["tls.crt"]
    assert cluster.data("studio-tls")["ca.crt"] == ca
    signing = cluster.data("studio-signing")["signing.pem"]
    assert cluster.public == {"ca.crt": ca.decode(), "signing.pub": public_of(signing, where="").decode()}


def test_what_is_told_names_objects_and_no_secret(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    cluster.hook("--ray-ca")
    cluster.hook("--ray-ca")
    told = caplog.messages
    assert len(told) == 16 and told[0] == "made Secret studio-token" and told[-1] == "kept ConfigMap studio-public"
    for name in cluster.api.objects["secrets"]:
        for value in cluster.data(name).values():
            assert value.decode() not in "\n".join(told)


def test_run_again_it_writes_nothing(cluster: Cluster) -> None:
    cluster.hook("--ray-ca")
    before = cluster.everything
    cluster.api.requests.clear()
    cluster.hook("--ray-ca", words=(*WORDS[:2], *reversed(WORDS[2:])))
    assert cluster.everything == before and not [one for one in cluster.api.requests if not one.startswith("GET")]


def test_names_that_change_give_another_certificate_and_change_nothing_else(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    cluster.hook()
    before = cluster.everything
    cluster.hook("--host=atelier.example.com", words=(*WORDS[:2], *WORDS[3:]))
    assert hosts_of(cluster.issued()) == {*HOSTS[1:], "atelier.example.com"}
    assert {name for name, one in cluster.everything.items() if one != before[name]} == {"studio-tls"}
    assert "(its names change: +atelier.example.com -atelier)" in caplog.text


def test_a_certificate_under_half_its_life_is_issued_anew(cluster: Cluster) -> None:
    cluster.hook()
    old = cluster.authority.issue("studio", HOSTS, life=timedelta(minutes=9))  # it begins five minutes ago
    cluster.put_pair("studio-tls", old, ca_crt=cluster.authority.pair.certificate)
    cluster.hook()
    assert cluster.data("studio-tls")["tls.key"] != old.key
    new = cluster.authority.issue("studio", HOSTS, life=timedelta(minutes=30))
    cluster.put_pair("studio-tls", new, ca_crt=cluster.authority.pair.certificate)
    cluster.hook()
    assert cluster.data("studio-tls")["tls.key"] == new.key


def test_a_certificate_of_another_authority_is_issued_anew(cluster: Cluster) -> None:
    stranger = Authority.new("stranger")
    cluster.put_pair("studio-tls", stranger.issue("studio", HOSTS), ca_crt=stranger.pair.certificate)
    cluster.hook()
    assert cluster.issued() and cluster.data("studio-tls")["ca.crt"] == cluster.data("studio-ca")["tls.crt"]


def test_what_is_half_made_is_completed_and_the_rest_of_it_stays(cluster: Cluster) -> None:
    cluster.hook()
    pair = Pair(certificate=cluster.data("studio-tls")["tls.crt"], key=cluster.data("studio-tls")["tls.key"])
    cluster.put_pair("studio-tls", pair)
    cluster.put("studio-token", token=b"", note=b"mine")
    cluster.put("studio-signing", other=b"mine")
    cluster.api.put("configmaps", {"metadata": {"name": "studio-public"}, "data": {"signing.pub": "old", "note": "mine"}})
    cluster.hook()
    assert cluster.data("studio-tls") == {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": cluster.authority.pair.certificate}
    assert len(cluster.data("studio-token")["token"]) == 43 and cluster.data("studio-token")["note"] == b"mine"
    signing = cluster.data("studio-signing")
    assert signing["other"] == b"mine" and cluster.public["signing.pub"].encode() == public_of(signing["signing.pem"], where="")
    assert cluster.public["note"] == "mine" and cluster.api.objects["secrets"]["studio-token"]["metadata"]["labels"] == {"by": "hand"}
    cluster.put("studio-tls", tls_crt=pair.certificate, tls_key=b"")
    cluster.hook()
    assert cluster.issued() and cluster.data("studio-tls")["tls.key"]


def test_what_an_operator_put_there_before_is_used(cluster: Cluster) -> None:
    pair, key = Authority.new("corporate").pair, new_key()
    cluster.put_pair("studio-ca", pair)
    cluster.put("studio-token", token=b"one\ntwo\n")
    cluster.put("studio-signing", signing_pem=key)
    cluster.hook()
    assert cluster.issued() and cluster.public == {"ca.crt": pair.certificate.decode(), "signing.pub": public_of(key, where="").decode()}
    assert cluster.data("studio-token") == {"token": b"one\ntwo\n"} and cluster.data("studio-ca")["tls.key"] == pair.key


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (Pair(certificate=Authority.new("a").pair.certificate, key=b""), "holds no authority that can issue"),
        (Pair(certificate=Authority.new("a").pair.certificate, key=Authority.new("b").pair.key), "its key belongs to another certificate"),
        (Authority.new("a").issue("b", ["c"]), "its certificate is no authority's"),
        (Authority.new("a", life=timedelta(minutes=1)).pair, r"ended on \d{4}-"),
    ],
    ids=["without its key", "keys of two", "no authority", "ended"],
)
def test_an_authority_that_cannot_issue_is_named_and_never_replaced(cluster: Cluster, pair: Pair, words: str) -> None:
    cluster.put_pair("studio-ca", pair)
    with pytest.raises(SystemExit, match=f"error: .*Secret studio-ca.*{words}|error: .*{words}.*") as told:
        cluster.hook()
    assert "studio-ca" in str(told.value) and "or delete it for a new authority" in str(told.value)
    assert cluster.data("studio-ca") == {"tls.crt": pair.certificate, "tls.key": pair.key} and "studio-tls" not in cluster.everything


def test_an_authority_near_its_end_is_told(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    cluster.put_pair("studio-ca", Authority.new("a", life=timedelta(days=300)).pair)
    cluster.hook()
    assert "the authority in Secret studio-ca ends on" in caplog.text and cluster.issued()


def test_a_signing_key_of_another_kind_is_named(cluster: Cluster) -> None:
    cluster.put("studio-signing", signing_pem=Authority.new("a").pair.key)
    with pytest.raises(SystemExit, match="error: Secret studio-signing holds no Ed25519 private key"):
        cluster.hook()


def test_an_operator_s_certificate_and_token_leave_the_rest_to_the_hook(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    words = ("--name=studio", "--no-tls", "--public-ca-from-secret=mine", "--no-token")
    cluster.hook(words=words)  # cert-manager's Secret comes after the hook
    assert set(cluster.everything) == {f"studio-{one}" for one in ("internal", "ray", "signing", "public")}
    assert "Secret mine has no ca.crt" in caplog.text and set(cluster.public) == {"signing.pub"}
    cluster.put("mine", tls_crt=b"c", tls_key=b"k", ca_crt=b"their authority")
    cluster.hook(words=words)
    assert cluster.public["ca.crt"] == "their authority" and cluster.data("mine")["tls.key"] == b"k"
    cluster.put("mine", tls_crt=b"of a known authority", tls_key=b"k")
    cluster.hook(words=words)
    assert set(cluster.public) == {"signing.pub"}


def test_ray_has_an_authority_of_its_own_where_that_is_asked_for(cluster: Cluster) -> None:
    cluster.hook("--ray-ca")
    data = cluster.data("studio-ray-ca")
    own = Authority.load(Pair(certificate=data["tls.crt"], key=data["tls.key"]))
    assert own.certificate.public_key() != cluster.authority.certificate.public_key()


def test_hooks_that_run_at_once_agree(cluster: Cluster) -> None:
    wanted = Wanted(name="studio", hosts=HOSTS, ray_ca=True)

    def run(_: int) -> None:
        provide(Objects(cluster.api.core(), namespace=NAMESPACE, labels=LABELS), wanted)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(6)))
    assert cluster.issued() and cluster.public["ca.crt"].encode() == cluster.data("studio-tls")["ca.crt"]
    signing = cluster.data("studio-signing")["signing.pem"]
    assert cluster.public["signing.pub"].encode() == public_of(signing, where="")
    before = cluster.everything
    run(0)
    assert cluster.everything == before


def test_an_account_that_may_not_is_told_so_in_one_sentence(cluster: Cluster) -> None:
    cluster.api.refusals["PATCH secrets"] = (403, 'secrets "studio-token" is forbidden: User "hook" cannot patch resource "secrets"')
    with pytest.raises(
        SystemExit, match=r"error: the API server refuses Secret studio-token to this account, its Role must allow .* cannot patch"
    ):
        cluster.hook()
    assert not cluster.everything


def test_an_api_server_that_is_away_is_one_sentence(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.api.refusals["GET secrets"] = (503, "etcd is away")
    with pytest.raises(SystemExit, match="error: the API server cannot answer for Secret studio-token now: etcd is away"):
        cluster.hook()
    file = tmp_path / "kubeconfig"
    file.write_text(file.read_text().replace(str(cluster.api.port), "1"))
    with pytest.raises(SystemExit, match="error: the API server cannot be reached"):
        cluster.hook()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match="error: there is no API server to ask"):
        cluster.hook()


@pytest.mark.parametrize("words", [("--name=studio",), ("--name=studio", "--host=a b"), ("--host=a",)])
def test_words_that_make_no_sense_are_refused(cluster: Cluster, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as told:
        cluster.hook(words=words)
    assert told.value.code == 2 and not cluster.everything
