"""An authority of certificates for tests."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Pair:
    """Two files in PEM."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates for `localhost` and 127.0.0.1; everything lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._built("authority", self._key, own=True)
        self.file = folder / "ca.crt"
        self.file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def sign(self, name: str) -> Pair:
        """A new pair, in place of one of this name."""
        key = ec.generate_private_key(ec.SECP256R1())
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        pair.certificate.write_bytes(self._built(name, key).public_bytes(serialization.Encoding.PEM))
        no_password = serialization.NoEncryption()
        pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password))
        return pair

    def _built(self, name: str, key: ec.EllipticCurvePrivateKey, *, own: bool = False) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = x509.CertificateBuilder(
            subject_name=subject, issuer_name=subject if own else self._certificate.subject, public_key=key.public_key(),
            serial_number=x509.random_serial_number(), not_valid_before=datetime.now(UTC) - timedelta(hours=1),
            not_valid_after=datetime.now(UTC) + timedelta(days=1),
        )  # fmt: skip
        builder = builder.add_extension(x509.BasicConstraints(ca=own, path_length=None), critical=True)
        return builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False).sign(self._key, hashes.SHA256())
