"""Signatures on artifacts that are code: made by this installation's control processes, checked by whoever loads one (Ed25519)."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from atelier.errors import failed_precondition
from atelier.secret import read_or_make

PRIVATE, PUBLIC = "signing.pem", "signing.pub"


class Signer:
    """Holds the private key. Only the trainer's and compiler's control processes have it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def open(cls, folder: Path) -> Signer:
        """The key pair in `folder` (`signing.pem`, mode 0600, and `signing.pub`), made if it is missing."""
        pem = read_or_make(folder / PRIVATE, _new_key)
        loaded = load_pem_private_key(pem, None)
        assert isinstance(loaded, Ed25519PrivateKey), f"{folder / PRIVATE} holds another kind of key"
        public = loaded.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        read_or_make(folder / PUBLIC, lambda: public)
        return cls(loaded)

    def sign(self, digest: str) -> bytes:
        """Signs an artifact's digest (hexadecimal)."""
        return self._key.sign(digest.encode())


class Verifier:
    """Holds the public key."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key

    @classmethod
    def load(cls, path: Path) -> Verifier:
        """Reads `signing.pub`."""
        key = load_pem_public_key(path.read_bytes())
        assert isinstance(key, Ed25519PublicKey), f"{path} holds another kind of key"
        return cls(key)

    def check(self, digest: str, signature: bytes) -> None:
        """Raises FAILED_PRECONDITION unless this installation signed the digest."""
        try:
            self._key.verify(signature, digest.encode())
        except InvalidSignature:
            sentence = f"artifacts/{digest} was not built and signed by this installation: compile it here"
            raise failed_precondition("NOT_SIGNED_HERE", sentence, artifact=digest) from None


def _new_key() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
