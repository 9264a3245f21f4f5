"""What the store forgets, and what it keeps."""

from __future__ import annotations

import hashlib
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from atelier.artifacts.manifest import File, Kind, Manifest
from atelier.artifacts.spool import Spool
from atelier.artifacts.store import Store
from atelier.errors import AtelierError, Status

DAY = timedelta(days=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(f"file://{tmp_path / 'store'}")


def put(store: Store, folder: Path, text: str, *, age: timedelta) -> File:
    path = folder / "file"
    path.write_text(text)
    file = File(path=f"{text}.txt", size=len(text), sha256=hashlib.sha256(text.encode()).hexdigest())
    store.put_blob(path, file)
    local = store.local_path(file.sha256)
    assert local is not None
    old = time.time() - age.total_seconds()
    os.utime(local, (old, old))
    return file


def test_a_sweep_takes_old_blobs_that_no_artifact_has_and_no_others(store: Store, tmp_path: Path) -> None:
    kept = put(store, tmp_path, "kept", age=DAY * 3)
    fresh = put(store, tmp_path, "fresh", age=timedelta(hours=1))
    orphan = put(store, tmp_path, "orphan", age=DAY * 3)
    store.put_manifest(Manifest(kind=Kind.DATASET, files=(kept,)))
    store.put_object("checkpoints/a/1-00000005/weights", b"x")
    assert store.sweep_blobs(older_than=DAY) == 1
    assert [store.has_blob(file) for file in (kept, fresh, orphan)] == [True, True, False]
    assert store.object("checkpoints/a/1-00000005/weights") == b"x"


def test_a_deleted_artifact_keeps_what_another_shares(store: Store, tmp_path: Path) -> None:
    shared, own = put(store, tmp_path, "shared", age=DAY * 2), put(store, tmp_path, "own", age=DAY * 2)
    manifest = Manifest(kind=Kind.DATASET, files=(shared, own))
    store.put_manifest(manifest)
    store.put_manifest(Manifest(kind=Kind.DATASET, files=(shared,)))
    store.delete_manifest(manifest.digest)
    assert store.sweep_blobs(older_than=DAY) == 1
    assert (store.has_blob(shared), store.has_blob(own)) == (True, False)


def test_nothing_is_swept_beside_a_damaged_manifest(store: Store, tmp_path: Path) -> None:
    orphan = put(store, tmp_path, "orphan", age=DAY * 2)
    store.put_object(f"manifests/{'0' * 64}", Manifest(kind=Kind.DATASET, files=(orphan,)).canonical_json())
    with pytest.raises(AtelierError) as caught:
        store.sweep_blobs(older_than=DAY)
    assert caught.value.status is Status.DATA_LOSS
    assert store.has_blob(orphan)


def test_deleting_below_a_prefix_spares_its_neighbours(store_url: str) -> None:
    store = Store.open(store_url)
    for key in ("checkpoints/ab/1/weights/x", "checkpoints/ab/2/weights/x", "checkpoints/abc/1/weights/x"):
        store.put_object(key, b"x")
    store.delete_below("checkpoints/ab/")
    store.delete_below("checkpoints/nobody/")
    assert store.object("checkpoints/abc/1/weights/x") == b"x"
    with pytest.raises(FileNotFoundError):
        store.object("checkpoints/ab/1/weights/x")


def test_an_upload_that_goes_on_is_not_swept(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    old, running = (File(path=name, size=10, sha256=digit * 64) for name, digit in (("old", "a"), ("running", "b")))
    for file in (old, running):
        spool.write(file, 0, b"12345")
        past = time.time() - DAY.total_seconds() * 2
        os.utime(spool.path(file.sha256), (past, past))
    spool.write(running, 5, b"678")
    assert spool.sweep(older_than=DAY) == 1
    assert (spool.size(old.sha256), spool.size(running.sha256)) == (0, 8)


def test_every_kind_of_store_keeps_and_gives_back(store_url: str, tmp_path: Path) -> None:
    store, content = Store.open(store_url), bytes(range(256)) * 50_000  # 12.8 MB: an S3 gets it in parts
    (tmp_path / "big").write_bytes(content)
    file = File(path="unet/big", size=len(content), sha256=hashlib.sha256(content).hexdigest())
    manifest = Manifest(kind=Kind.MODEL, files=(file,))
    with pytest.raises(AtelierError) as caught:
        store.put_manifest(manifest)
    assert caught.value.reason == "BLOB_MISSING"
    for _ in range(2):  # again is fine
        store.put_blob(tmp_path / "big", file)
        store.put_manifest(manifest)
    assert store.has_blob(file) and store.manifest(manifest.digest) == manifest
    pieces = list(store.read_blob(file.sha256, 5_000_001))
    assert b"".join(pieces) == content[5_000_001:] and max(map(len, pieces)) <= 1 << 20
    assert list(store.read_blob(file.sha256, file.size)) == []
    store.materialize(manifest, tmp_path / "out")
    assert (tmp_path / "out" / "unet" / "big").read_bytes() == content
    store.delete_manifest(manifest.digest)
    with pytest.raises(AtelierError) as caught:
        store.manifest(manifest.digest)
    assert caught.value.status is Status.NOT_FOUND
    assert store.sweep_blobs(older_than=timedelta(seconds=-60)) == 1
    with pytest.raises(AtelierError) as caught:
        list(store.read_blob(file.sha256))
    assert (caught.value.status, caught.value.reason) == (Status.DATA_LOSS, "BLOB_MISSING")


def test_damage_is_found_when_it_is_read_and_healed_by_bringing_in_again(store_url: str, tmp_path: Path) -> None:
    store = Store.open(store_url)
    (tmp_path / "a").write_bytes(b"right")
    file = File(path="a", size=5, sha256=hashlib.sha256(b"right").hexdigest())
    manifest = Manifest(kind=Kind.DATASET, files=(file,))
    store.put_blob(tmp_path / "a", file)
    store.put_manifest(manifest)
    store.put_object(f"blobs/{file.sha256[:2]}/{file.sha256}", b"wrong")
    store.put_object(f"manifests/{manifest.digest}", manifest.canonical_json().replace(b"DATASET", b"LORA"))
    for read in (lambda: store.materialize(manifest, tmp_path / "out"), lambda: store.manifest(manifest.digest)):
        with pytest.raises(AtelierError) as caught:
            read()
        assert (caught.value.status, caught.value.reason) == (Status.DATA_LOSS, "DIGEST_MISMATCH")
    store.put_manifest(manifest)
    assert store.manifest(manifest.digest) == manifest


def test_another_process_opens_the_same_store_by_its_url(store_url: str) -> None:
    store = Store.open(store_url)
    store.put_object("pictures/a/1.png", b"x")
    assert not store.url or Store.open(store.url).object("pictures/a/1.png") == b"x"
    assert bool(store.url) is not store_url.startswith("memory")


def test_a_store_that_is_away_is_unavailable(s3: str) -> None:
    with pytest.raises(AtelierError) as caught:
        Store.open(f"s3://no-such-bucket/atelier?endpoint={s3}&region=us-east-1").put_object("a", b"x")
    assert (caught.value.status, caught.value.reason) == (Status.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert "bucket" not in caught.value.message


@pytest.mark.parametrize("url", ["", "/data", "ftp://host/a", "s3://", "s3://bucket?colour=red"])
def test_a_url_that_is_no_store_is_refused(url: str) -> None:
    with pytest.raises(AtelierError, match="ATELIER_STORE"):
        Store.open(url)
