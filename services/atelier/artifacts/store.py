"""Bytes by their digest: blobs, manifests and what belongs to jobs, on any object store that obstore knows.

Layout: `blobs/{first 2 digits}/{sha256}`, `manifests/{digest}`, `checkpoints/{job}/...`, `pictures/{job}/...`. A blob is written whole or
not at all, and a manifest after its blobs, so that what has a manifest is complete.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlparse

import obstore
from obstore.store import LocalStore, MemoryStore, ObjectStore

from atelier.artifacts.manifest import File, Manifest
from atelier.errors import AtelierError, Status, data_loss, not_found

PIECE_BYTES = 1 << 20


class Store:
    """Thread-safe. `root` is the folder of a directory store, so that big files need not be copied to be read."""

    def __init__(self, objects: ObjectStore, *, root: Path | None = None) -> None:
        self._objects = objects
        self.root = root

    @classmethod
    def open(cls, url: str) -> Store:
        """`memory://` or `file:///folder` (made if it is missing)."""
        parts = urlparse(url)
        if parts.scheme == "memory":
            return cls(MemoryStore())
        if parts.scheme == "file":
            root = Path(unquote(parts.path))
            return cls(LocalStore(root, mkdir=True), root=root)
        raise ValueError(f"ATELIER_STORE: {url!r} is not supported; use file:///FOLDER or memory://")

    @property
    def url(self) -> str:
        """What another process opens the same store with; empty where it cannot."""
        return f"file://{self.root}" if self.root else ""

    # Blobs.

    def has_blob(self, file: File) -> bool:
        """Whether the blob is there in its whole size."""
        try:
            return obstore.head(self._objects, _blob(file.sha256))["size"] == file.size
        except FileNotFoundError:
            return False

    def put_blob(self, path: Path, file: File) -> None:
        """Copies a local file in. Raises DATA_LOSS when its content is not what `file` says."""
        if self.has_blob(file):
            return
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != file.sha256 or path.stat().st_size != file.size:
            raise data_loss("DIGEST_MISMATCH", f"{file.path}: content has SHA-256 {digest}, announced was {file.sha256}", file=file.path)
        obstore.put(self._objects, _blob(file.sha256), path)

    def read_blob(self, sha256: str, offset: int = 0) -> Iterator[bytes]:
        """The blob's bytes from an offset on, in pieces of at most 1 MiB. Raises DATA_LOSS when it is gone."""
        try:
            yield from self.read(_blob(sha256), offset)
        except FileNotFoundError:
            raise data_loss("BLOB_MISSING", f"the store has lost the file with SHA-256 {sha256}; bring it in again") from None

    def read(self, key: str, offset: int = 0) -> Iterator[bytes]:
        """An object's bytes from an offset on, in pieces of at most 1 MiB. Raises FileNotFoundError."""
        size = obstore.head(self._objects, key)["size"]
        while offset < size:
            piece = bytes(obstore.get_range(self._objects, key, start=offset, end=min(offset + PIECE_BYTES, size)))
            yield piece
            offset += len(piece)

    def local_path(self, sha256: str) -> Path | None:
        """Where the blob lies on this machine's disk, if it does. Read only."""
        return self.object_path(_blob(sha256))

    def object_path(self, key: str) -> Path | None:
        """Where an object lies on this machine's disk, if it does. Read only."""
        return self.root / key if self.root else None

    def materialize(self, manifest: Manifest, folder: Path) -> None:
        """Lays the files out below `folder`: read-only hard links where they can be made, copies elsewhere. Every digest is checked."""
        for file in manifest.files:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            local = self.local_path(file.sha256)
            if local is not None and local.exists():
                _link(local, target)
                with target.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
            else:
                digest = _copy(self.read_blob(file.sha256), target)
            if digest != file.sha256:
                target.unlink()
                raise data_loss("DIGEST_MISMATCH", f"{file.path} is damaged in the store: bring the artifact in again", file=file.path)

    # Manifests and small objects.

    def put_manifest(self, manifest: Manifest) -> None:
        """Commits an artifact; its blobs must be there."""
        missing = [file.path for file in manifest.files if not self.has_blob(file)]
        if missing:
            raise data_loss("BLOB_MISSING", f"these files have not arrived: {', '.join(missing[:10])}")
        self.put_object(f"manifests/{manifest.digest}", manifest.canonical_json())

    def manifest(self, digest: str) -> Manifest:
        """A committed manifest, checked against its digest."""
        try:
            manifest = Manifest.from_json(self.object(f"manifests/{digest}"))
        except FileNotFoundError:
            raise not_found("artifact", digest) from None
        if manifest.digest != digest:
            raise data_loss("DIGEST_MISMATCH", f"the manifest of {digest} is damaged in the store", artifact=digest)
        return manifest

    def delete_manifest(self, digest: str) -> None:
        """Forgets an artifact; its blobs stay for others that may have them too."""
        self.delete(f"manifests/{digest}")

    def put_object(self, key: str, content: bytes | Path) -> None:
        """Writes a small object, or a file, whole."""
        obstore.put(self._objects, key, content)

    def object(self, key: str) -> bytes:
        """A small object. Raises FileNotFoundError."""
        return bytes(obstore.get(self._objects, key).bytes())

    def delete(self, key: str) -> None:
        """Deletes an object; one that is not there is fine."""
        try:
            obstore.delete(self._objects, key)
        except FileNotFoundError:
            return

    def delete_below(self, prefix: str) -> None:
        """Deletes all objects below a prefix that ends with `/`."""
        for objects in obstore.list(self._objects, prefix):
            for found in objects:
                self.delete(found["path"])

    def sweep_blobs(self, *, older_than: timedelta) -> int:
        """Deletes blobs that no manifest names: of deleted artifacts, or never committed; gives how many. Raises DATA_LOSS, and deletes
        nothing, when a manifest cannot be read.

        Only for a time when nobody commits: a blob that lies here already is not written again, and could go before its new manifest is
        there.
        """
        keys = [entry["path"] for entries in obstore.list(self._objects, "manifests/") for entry in entries]
        kept = {file.sha256 for key in keys for file in self.manifest(key.rpartition("/")[2]).files}
        limit = datetime.now(UTC) - older_than
        blobs = [entry for entries in obstore.list(self._objects, "blobs/") for entry in entries]
        gone = [blob["path"] for blob in blobs if blob["last_modified"] < limit and blob["path"].rpartition("/")[2] not in kept]
        for path in gone:
            self.delete(path)
        return len(gone)


class Spool:
    """A folder where uploads grow until they are whole, so that one that was cut off goes on where it was."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the file with this digest grows."""
        return self._folder / sha256

    def size(self, sha256: str) -> int:
        """Bytes that are there."""
        path = self.path(sha256)
        return path.stat().st_size if path.exists() else 0

    def write(self, file: File, offset: int, data: bytes) -> None:
        """Appends a piece; it must begin where the file ends, and must not make it larger than announced."""
        size = self.size(file.sha256)
        if offset != size or size + len(data) > file.size:
            raise _out_of_range(file, offset, size)
        with self.path(file.sha256).open("ab") as stream:
            stream.write(data)

    def drop(self, sha256: str) -> None:
        """Forgets a file."""
        self.path(sha256).unlink(missing_ok=True)

    def sweep(self, *, older_than: timedelta) -> int:
        """Forgets files that nothing was written to for so long, whatever goes on meanwhile; gives how many."""
        limit = time.time() - older_than.total_seconds()
        gone = [path for path in self._folder.iterdir() if path.is_file() and path.stat().st_mtime < limit]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)


def _out_of_range(file: File, offset: int, size: int) -> AtelierError:
    sentence = (
        f"{file.path}: a piece at {offset} does not follow the {size} of {file.size} bytes that are there; ask QueryUpload where to go on"
    )
    return AtelierError(Status.OUT_OF_RANGE, "UPLOAD_OFFSET", sentence, metadata={"committed_bytes": str(size)})


def _blob(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"


def _link(source: Path, target: Path) -> None:
    source.chmod(0o444)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        target.chmod(0o444)


def _copy(pieces: Iterator[bytes], target: Path) -> str:
    digest = hashlib.sha256()
    with target.open("wb") as stream:
        for piece in pieces:
            digest.update(piece)
            stream.write(piece)
    target.chmod(0o444)
    return digest.hexdigest()
