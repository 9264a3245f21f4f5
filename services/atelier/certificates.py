"""An authority of an installation's own, and the certificates that it issues (ECDSA P-256, RFC 5280), as PEM."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CERTIFICATE, KEY, CA = "tls.crt", "tls.key", "ca.crt"
"""What files and keys of Secrets with them are called."""

AUTHORITY_LIFE = timedelta(days=3652)
"""10 years: who trusts an authority has to be told of another."""
LIFE = timedelta(days=730)
"""2 years, renewed after one."""
SKEW = timedelta(minutes=5)
"""Certificates begin so long ago, for clocks that are slow."""

_DNS = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
    "encipher_only", "decipher_only",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A certificate and its key."""

    certificate: bytes
    key: bytes


class Authority:
    """Issues certificates. It is constrained to path length 0: what it issues can issue nothing."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def new(cls, name: str, *, life: timedelta = AUTHORITY_LIFE) -> Authority:
        """An authority that nobody knows yet."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _named(name)
        begins, own = datetime.now(UTC) - SKEW, x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = x509.CertificateBuilder(
            subject_name=subject, issuer_name=subject, public_key=key.public_key(), serial_number=x509.random_serial_number(),
            not_valid_before=begins, not_valid_after=begins + life,
        )  # fmt: skip
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True).add_extension(own, critical=False)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, pair: Pair) -> Authority:
        """Raises ValueError where the two cannot be read, do not belong together, or are no authority's."""
        certificate, key = x509.load_pem_x509_certificate(pair.certificate), load_pem_private_key(pair.key, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise ValueError("its key is neither of an elliptic curve nor RSA")
        if not _belongs(key, certificate):
            raise ValueError("its key belongs to another certificate")
        try:
            if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
                raise ValueError("its certificate is no authority's")
        except x509.ExtensionNotFound:
            raise ValueError("its certificate is no authority's") from None
        return cls(certificate, key)

    @property
    def pair(self) -> Pair:
        """As PEM: the certificate is public, the key is not."""
        return Pair(certificate=self.certificate.public_bytes(Encoding.PEM), key=_pem(self._key))

    def issue(self, name: str, hosts: Iterable[str], *, life: timedelta = LIFE) -> Pair:
        """A certificate for servers under these names and IP addresses, and for a client; it ends before its authority does.

        Raises ValueError for what can be no host.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        begins = datetime.now(UTC) - SKEW
        builder = x509.CertificateBuilder(
            subject_name=_named(name), issuer_name=self.certificate.subject, public_key=key.public_key(),
            serial_number=x509.random_serial_number(), not_valid_before=begins,
            not_valid_after=min(begins + life, self.certificate.not_valid_after_utc),
        )  # fmt: skip
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage("digital_signature"), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False),
            (x509.SubjectAlternativeName([_general(host) for host in sorted(set(map(host_name, hosts)))]), False),
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            (self._identifier, False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        return Pair(certificate=builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM), key=_pem(key))

    @property
    def _identifier(self) -> x509.AuthorityKeyIdentifier:
        try:
            own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)

    def fault(self, pair: Pair, hosts: Iterable[str], *, now: datetime) -> str:
        """Why a certificate has to be issued anew; empty where it is good."""
        try:
            certificate = x509.load_pem_x509_certificate(pair.certificate)
            key = load_pem_private_key(pair.key, None)
        except (ValueError, TypeError):
            return "it cannot be read"
        if not _belongs(key, certificate):
            return "its key belongs to another one"
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return "another authority issued it"
        has, wanted = hosts_of(certificate), set(map(host_name, hosts))
        if has != wanted:
            changes = [f"+{host}" for host in sorted(wanted - has)] + [f"-{host}" for host in sorted(has - wanted)]
            return f"its names change: {' '.join(changes)}"
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return f"it ends on {ends:%Y-%m-%d}" if now > begins + (ends - begins) / 2 else ""


def host_name(host: str) -> str:
    """A name or an IP address as certificates spell it. Raises ValueError for what is neither."""
    plain = host.strip("[]").rstrip(".").lower()
    try:
        return str(ipaddress.ip_address(plain))
    except ValueError:
        if len(plain) > 253 or not _DNS.fullmatch(plain):
            raise ValueError(f"{host!r} is no host's name and no IP address") from None
        return plain


def hosts_of(certificate: x509.Certificate) -> set[str]:
    """The names and IP addresses that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {name.lower() for name in names.get_values_for_type(x509.DNSName)} | {
        str(address) for address in names.get_values_for_type(x509.IPAddress)
    }


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _usage(*used: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in used for usage in _USAGES})


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _belongs(key: object, certificate: x509.Certificate) -> bool:
    def public(one: object) -> bytes:
        return one.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]

    return public(key.public_key()) == public(certificate.public_key())  # type: ignore[attr-defined]
