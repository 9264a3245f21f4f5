"""Signatures on artifacts that are code: made by this installation's control processes, checked by whoever loads one (Ed25519)."""

from __future__ import annotations

import os
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

PRIVATE, PUBLIC = "signing.pem", "signing.pub"


class Signer:
    """Holds the private key. Only the trainer's and compiler's control processes have it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def open(cls, folder: Path) -> Signer:
        """The key pair in `folder` (`signing.pem`, mode 0600, and `signing.pub`), made if it is missing."""
        private = folder / PRIVATE
        if not private.exists():
            folder.mkdir(parents=True, exist_ok=True)
            key = Ed25519PrivateKey.generate()
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(pem)
            (folder / PUBLIC).write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        loaded = load_pem_private_key(private.read_bytes(), None)
        assert isinstance(loaded, Ed25519PrivateKey), f"{private} holds another kind of key"
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
