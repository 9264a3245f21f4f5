"""Certificates of Ray's pods: good for the pod's address, both ways, and only under the installation's authority."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from atelier.certificates import Authority, hosts_of
from atelier.kubernetes import ray_certificate


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    folder = tmp_path / "ray-ca"
    folder.mkdir()
    pair = Authority.new("studio Ray CA").pair
    (folder / "tls.crt").write_bytes(pair.certificate)
    (folder / "tls.key").write_bytes(pair.key)
    return folder


def pod(authority: Path, folder: Path, *hosts: str) -> Path:
    folder.mkdir(exist_ok=True)
    words = [f"--authority={authority}", f"--into={folder}", *(f"--host={host}" for host in hosts)]
    ray_certificate.main(words)
    return folder


def hello(server: Path, client: Path, host: str) -> None:
    """A handshake of two pods, each of which asks the other for a certificate, as Ray does."""
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(server / "ca.crt"))
    theirs.verify_mode = ssl.CERT_REQUIRED
    theirs.load_cert_chain(server / "tls.crt", server / "tls.key")
    own = ssl.create_default_context(cafile=str(client / "ca.crt"))
    own.load_cert_chain(client / "tls.crt", client / "tls.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asked = own.wrap_bio(to_client, to_server, server_hostname=host)
    answering = theirs.wrap_bio(to_server, to_client, server_side=True)
    done = set()
    for _ in range(6):
        for one in (asked, answering):
            try:
                one.do_handshake()
                done.add(one)
            except ssl.SSLWantReadError:
                pass
    assert done == {asked, answering}


def test_two_pods_know_each_other_by_address_and_by_the_head_s_name(authority: Path, tmp_path: Path) -> None:
    head = pod(authority, tmp_path / "head", "10.1.2.3", "atelier-ray-head")
    node = pod(authority, tmp_path / "node", "10.1.2.4")
    for host in ("10.1.2.3", "atelier-ray-head", "127.0.0.1", "localhost"):
        hello(head, node, host)
    hello(node, head, "10.1.2.4")
    with pytest.raises(ssl.SSLCertVerificationError):
        hello(node, head, "10.1.2.3")


def test_who_has_a_certificate_of_another_authority_is_nobody(authority: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    pair = Authority.new("other").pair
    (other / "tls.crt").write_bytes(pair.certificate)
    (other / "tls.key").write_bytes(pair.key)
    with pytest.raises(ssl.SSLError):
        hello(pod(authority, tmp_path / "head", "10.1.2.3"), pod(other, tmp_path / "node", "10.1.2.4"), "10.1.2.3")


def test_it_lasts_as_long_as_its_authority_and_its_key_is_for_the_pod_alone(authority: Path, tmp_path: Path) -> None:
    folder = pod(authority, tmp_path / "pod", "fd00::1")
    issued = x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes())
    ca = x509.load_pem_x509_certificate((authority / "tls.crt").read_bytes())
    assert abs(issued.not_valid_after_utc - ca.not_valid_after_utc) < timedelta(minutes=1)
    assert hosts_of(issued) == {"fd00::1", "localhost", "127.0.0.1"}
    assert (folder / "tls.key").stat().st_mode & 0o777 == 0o400
    assert (folder / "ca.crt").read_bytes() == (authority / "tls.crt").read_bytes()


def test_a_pod_that_starts_again_gets_another(authority: Path, tmp_path: Path) -> None:
    before = (pod(authority, tmp_path / "pod", "10.1.2.3") / "tls.crt").read_bytes()
    hello(pod(authority, tmp_path / "pod", "10.1.2.5"), tmp_path / "pod", "10.1.2.5")
    assert (tmp_path / "pod" / "tls.crt").read_bytes() != before


def test_what_cannot_be_is_one_sentence(authority: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no certificate of the authority in .*No such file"):
        pod(tmp_path / "nowhere", tmp_path / "pod", "10.1.2.3")
    (authority / "tls.key").write_bytes(Authority.new("other").pair.key)
    with pytest.raises(SystemExit, match="belongs to another certificate"):
        pod(authority, tmp_path / "pod", "10.1.2.3")
    with pytest.raises(SystemExit):
        pod(authority, tmp_path / "pod", "not a host")
