"""Signatures on artifacts that are code: made by this installation's control processes, checked by whoever loads one (Ed25519)."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
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
        read_or_make(folder / PRIVATE, new_key)
        signer = cls.load(folder / PRIVATE)
        read_or_make(folder / PUBLIC, lambda: signer.public)
        return signer

    @classmethod
    def load(cls, path: Path) -> Signer:
        """Reads `signing.pem`. Raises FAILED_PRECONDITION for what is no such key."""
        return cls(_parsed(_content(path), where=str(path)))

    @property
    def public(self) -> bytes:
        """The public key (PEM)."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, digest: str) -> bytes:
        """Signs an artifact's digest (hexadecimal)."""
        return self._key.sign(digest.encode())


class Verifier:
    """Holds the public key."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key

    @classmethod
    def load(cls, path: Path) -> Verifier:
        """Reads `signing.pub`. Raises FAILED_PRECONDITION for what is no such key."""
        try:
            key = load_pem_public_key(_content(path))
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise failed_precondition("NO_PUBLIC_KEY", f"{path} holds no Ed25519 public key in PEM")
        return cls(key)

    @property
    def public(self) -> bytes:
        """The public key (PEM)."""
        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def check(self, digest: str, signature: bytes) -> None:
        """Raises FAILED_PRECONDITION unless this installation signed the digest."""
        try:
            self._key.verify(signature, digest.encode())
        except InvalidSignature:
            sentence = f"artifacts/{digest} was not built and signed by this installation: compile it here"
            raise failed_precondition("NOT_SIGNED_HERE", sentence, artifact=digest) from None


def signing_keys(folder: Path, *, private: Path | None, public: Path | None) -> tuple[Signer | None, Path]:
    """This process's signer, None where it only has the public key, and the file with that key for workers and replicas.

    Without either file the pair is the installation's own, in `folder`. Raises FAILED_PRECONDITION where the two do not belong together.
    """
    if public is None:
        assert private is None, "a private key comes with its public one"
        return Signer.open(folder), folder / PUBLIC
    verifier = Verifier.load(public)
    if private is None:
        return None, public
    signer = Signer.load(private)
    if signer.public != verifier.public:
        raise failed_precondition("KEYS_DIFFER", f"{public} is not the public key of {private}: nobody would load what it signs")
    return signer, public


def new_key() -> bytes:
    """A private key (PEM, PKCS8)."""
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_of(private: bytes, *, where: str) -> bytes:
    """The public key (PEM) of a private one. Raises FAILED_PRECONDITION naming `where` it was found if it is none."""
    return Signer(_parsed(private, where=where)).public


def _parsed(pem: bytes, *, where: str) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise failed_precondition("NO_SIGNING_KEY", f"{where} holds no Ed25519 private key in PEM without a password")
    return key


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise failed_precondition("NO_SIGNING_KEY", f"cannot read {path}: {error.strerror}") from error
