"""An authority of its own: what it issues is what openssl and gRPC ask for, and when that has to be issued anew."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from authority import Authority as Files
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from atelier.certificates import LIFE, Authority, Pair, host_name, hosts_of
from atelier.rpc import auth, server
from atelier.rpc.tls import Tls

HOSTS = ("atelier", "atelier.studio.svc.cluster.local", "localhost", "127.0.0.1", "fd00::1", "atelier.example.com")


def read(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def foreign(*, rsa_key: bool = False, ca: bool = True) -> Pair:
    """An authority that another program made, with nothing but what it must have."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048) if rsa_key else ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "corporate")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=9))
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return Pair(certificate=certificate, key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def test_a_certificate_says_what_it_is_for_and_no_more() -> None:
    authority = Authority.new("studio CA")
    ca, issued = authority.certificate, read(authority.issue("studio", HOSTS).certificate)
    constraints = [one.extensions.get_extension_for_class(x509.BasicConstraints) for one in (ca, issued)]
    assert [(one.critical, one.value.ca, one.value.path_length) for one in constraints] == [(True, True, 0), (True, False, None)]
    usages = [one.extensions.get_extension_for_class(x509.KeyUsage).value for one in (ca, issued)]
    assert [(one.key_cert_sign, one.crl_sign, one.digital_signature) for one in usages] == [(True, True, False), (False, False, True)]
    extended = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(extended) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    own = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert issued.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == own
    assert hosts_of(issued) == set(HOSTS)
    assert issued.serial_number != read(authority.issue("studio", HOSTS).certificate).serial_number
    ends = issued.not_valid_after_utc - datetime.now(UTC)
    assert LIFE - timedelta(minutes=6) < ends < LIFE and issued.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=4)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command")
@pytest.mark.parametrize("pair", [Authority.new("studio CA").pair, foreign(), foreign(rsa_key=True)], ids=["own", "foreign", "foreign RSA"])
def test_openssl_accepts_the_chain_for_each_name_and_for_no_other(pair: Pair, tmp_path: Path) -> None:
    issued = Authority.load(pair).issue("studio", HOSTS)
    (tmp_path / "ca.crt").write_bytes(pair.certificate)
    (tmp_path / "tls.crt").write_bytes(issued.certificate)

    def verified(*words: str) -> bool:
        command = ["openssl", "verify", "-CAfile", tmp_path / "ca.crt", *words, tmp_path / "tls.crt"]
        return subprocess.run(command, capture_output=True).returncode == 0

    for purpose in ("sslserver", "sslclient"):
        assert verified("-purpose", purpose)
    for host in HOSTS:
        assert verified("-verify_ip" if ":" in host or host[0].isdigit() else "-verify_hostname", host)
    assert not verified("-verify_hostname", "elsewhere.example.com") and not verified("-verify_ip", "10.0.0.1")


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command")
def test_openssl_finds_nothing_to_complain_of_even_when_strict(tmp_path: Path) -> None:
    authority = Authority.new("studio CA")
    (tmp_path / "ca.crt").write_bytes(authority.pair.certificate)
    (tmp_path / "tls.crt").write_bytes(authority.issue("studio", HOSTS).certificate)
    command = ["openssl", "verify", "-x509_strict", "-check_ss_sig", "-CAfile", tmp_path / "ca.crt", tmp_path / "tls.crt"]
    subprocess.run(command, check=True, capture_output=True)


async def test_grpc_shakes_hands_both_ways_under_each_name_and_under_no_other(tmp_path: Path) -> None:
    files = Files(tmp_path)
    shown = files.sign("studio", hosts=(*HOSTS, "*.apps.example.com"))
    tls = Tls(certificate=shown.certificate, key=shown.key, ca=files.file, client_ca=files.file)

    async def healthy(name: str, credentials: Tls) -> bool:
        options = [("grpc.ssl_target_name_override", name)]
        async with grpc.aio.secure_channel(f"127.0.0.1:{bound.port}", credentials.channel_credentials(), options) as channel:
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                return False
            return bool(answer.status == server.SERVING)

    async with server.serving("127.0.0.1:0", [], authorize=auth.allow_all, tls=tls) as bound:
        for name in (*HOSTS, "studio.apps.example.com"):
            assert await healthy(name, tls), name
        assert not await healthy("elsewhere.example.com", tls)
        assert not await healthy("atelier", Tls(ca=files.file)), "without a client's certificate"


def test_nothing_outlives_its_authority() -> None:
    authority = Authority.new("studio CA", life=timedelta(days=30))
    assert read(authority.issue("studio", ["a"]).certificate).not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_what_is_good_is_kept_and_what_is_not_says_why() -> None:
    authority, now = Authority.new("studio CA"), datetime.now(UTC)
    good = authority.issue("studio", HOSTS)
    assert authority.fault(good, [*reversed(HOSTS), "LOCALHOST.", "[fd00:0::1]"], now=now) == ""
    assert authority.fault(good, HOSTS, now=now + timedelta(days=364)) == ""
    assert "it ends on" in authority.fault(good, HOSTS, now=now + timedelta(days=366))
    assert authority.fault(good, ["new", *HOSTS[1:]], now=now) == "its names change: +new -atelier"
    assert authority.fault(Authority.new("studio CA").issue("studio", HOSTS), HOSTS, now=now) == "another authority issued it"
    other = authority.issue("studio", HOSTS)
    assert authority.fault(Pair(certificate=good.certificate, key=other.key), HOSTS, now=now) == "its key belongs to another one"
    assert authority.fault(Pair(certificate=b"nonsense", key=good.key), HOSTS, now=now) == "it cannot be read"


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (Pair(certificate=Authority.new("a").pair.certificate, key=Authority.new("b").pair.key), "belongs to another"),
        (foreign(ca=False), "no authority's"),
        (Pair(certificate=b"", key=b""), "PEM"),
    ],
    ids=["keys of two", "no authority", "nothing"],
)
def test_what_cannot_issue_is_no_authority(pair: Pair, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Authority.load(pair)


def test_hosts_are_spelt_one_way() -> None:
    spelt = {"Atelier.Example.COM.": "atelier.example.com", "[::1]": "::1", "0:0::1": "::1", "*.example.com": "*.example.com", "a_b": "a_b"}
    assert {host: host_name(host) for host in spelt} == spelt
    for wrong in ("", "a b", "*", "a.*.com", "https://a", "a" * 64, "-a", "a:7878", "é.com", ".".join(["a" * 60] * 5)):
        with pytest.raises(ValueError, match="no host"):
            host_name(wrong)
