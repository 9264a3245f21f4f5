"""Who signs and who only checks: the pair of a machine's own, and keys that an operator mounts."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from atelier.artifacts.catalog import Catalog
from atelier.artifacts.manifest import File, Kind, Manifest, hash_file
from atelier.artifacts.signing import PRIVATE, PUBLIC, Signer, Verifier, new_key, public_of, signing_keys
from atelier.artifacts.store import Store
from atelier.errors import AtelierError, Status
from atelier.ledger import Database
from atelier.migrations import migrate

DIGEST = "ab" * 32


@pytest.fixture
def mounted(tmp_path: Path) -> tuple[Path, Path]:
    """A key and its public key, as files of an operator's."""
    private, public = tmp_path / "mounted.pem", tmp_path / "mounted.pub"
    private.write_bytes(new_key())
    public.write_bytes(public_of(private.read_bytes(), where=""))
    return private, public


def refused(error: AtelierError, words: str) -> bool:
    return error.status is Status.FAILED_PRECONDITION and words in error.message


def test_a_machine_has_a_pair_of_its_own_made_once(tmp_path: Path) -> None:
    signer, public = signing_keys(tmp_path / "keys", private=None, public=None)
    assert signer is not None and public == tmp_path / "keys" / PUBLIC
    again, _ = signing_keys(tmp_path / "keys", private=None, public=None)
    assert again is not None and again.public == signer.public == public.read_bytes()
    assert (tmp_path / "keys" / PRIVATE).stat().st_mode & 0o777 == 0o600
    Verifier.load(public).check(DIGEST, signer.sign(DIGEST))


def test_a_mounted_key_signs_and_nothing_is_made(mounted: tuple[Path, Path], tmp_path: Path) -> None:
    signer, public = signing_keys(tmp_path / "keys", private=mounted[0], public=mounted[1])
    assert signer is not None and public == mounted[1] and not (tmp_path / "keys").exists()
    Verifier.load(public).check(DIGEST, signer.sign(DIGEST))
    with pytest.raises(AtelierError) as error:
        Verifier.load(public).check("cd" * 32, signer.sign(DIGEST))
    assert refused(error.value, "was not built and signed by this installation")


def test_a_public_key_alone_checks_and_signs_nothing(mounted: tuple[Path, Path], tmp_path: Path) -> None:
    signer, public = signing_keys(tmp_path / "keys", private=None, public=mounted[1])
    assert signer is None and public == mounted[1] and not (tmp_path / "keys").exists()
    database = Database(f"sqlite:///{tmp_path}/ledger.db")
    migrate(database)
    catalog = Catalog(store=Store.open("memory://"), database=database, signer=signer)
    file = File(path="engine.bin", size=mounted[1].stat().st_size, sha256=hash_file(mounted[1]))
    catalog.store.put_blob(mounted[1], file)
    manifest = Manifest(kind=Kind.ENGINE, files=(file,))
    with pytest.raises(AtelierError) as error:
        catalog.commit(manifest, sign=True)
    assert refused(error.value, "holds no signing key")
    with pytest.raises(AtelierError) as error:
        catalog.get(manifest.digest)
    assert error.value.status is Status.NOT_FOUND
    assert catalog.commit(manifest).signature == b""
    database.close()


def test_a_key_and_another_one_s_public_key_are_refused(mounted: tuple[Path, Path], tmp_path: Path) -> None:
    other = Signer.open(tmp_path / "other")
    mounted[1].write_bytes(other.public)
    with pytest.raises(AtelierError) as error:
        signing_keys(tmp_path / "keys", private=mounted[0], public=mounted[1])
    assert refused(error.value, "is not the public key of")


def test_what_is_no_key_is_named(tmp_path: Path) -> None:
    curve = generate_private_key(SECP256R1())
    file = tmp_path / "key"
    for content in (None, b"", b"nonsense", curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(AtelierError) as error:
            Signer.load(file)
        assert refused(error.value, str(file))
    file.unlink()
    for content in (None, b"nonsense", curve.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(AtelierError) as error:
            Verifier.load(file)
        assert refused(error.value, str(file))
