"""Bytes by their digest: blobs, manifests and what belongs to jobs, on any object store that obstore knows.

Layout: `blobs/{first 2 digits}/{sha256}`, `manifests/{digest}`, `checkpoints/{job}/...`, `pictures/{job}/...`. A blob is written whole or
not at all, and a manifest after its blobs, so that what has a manifest is complete.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlparse

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore, ObjectStore, S3Store

from atelier.artifacts.manifest import File, Manifest, hash_file
from atelier.errors import AtelierError, data_loss, invalid_field, not_found, unavailable

PIECE_BYTES = 1 << 20


FETCHES = 4
"""Files that are fetched at once from a store that is no folder."""
S3_OPTIONS = ("endpoint", "region")
"""What a URL may say of S3 besides bucket and prefix. Credentials come from the environment alone (`AWS_...`, or the pod's identity)."""
RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}

logger = logging.getLogger("atelier.store")


class Store:
    """Thread-safe. `root` is the folder of a directory store, so that big files need not be copied to be read.

    Raises UNAVAILABLE where an object store does not answer.
    """

    def __init__(self, objects: ObjectStore, *, url: str = "", root: Path | None = None) -> None:
        self._objects = objects
        self.root = root
        self.url = url
        """What another process opens the same store with; empty where it cannot."""

    @classmethod
    def open(cls, url: str) -> Store:
        """`memory://`, `file:///folder` (made if it is missing), or `s3://bucket/prefix?endpoint=https://...&region=...`.

        Raises INVALID_ARGUMENT for anything else.
        """
        parts = urlparse(url)
        if parts.scheme == "memory":
            return cls(MemoryStore())
        if parts.scheme == "file":
            root = Path(unquote(parts.path))
            return cls(LocalStore(root, mkdir=True), url=url, root=root)
        if parts.scheme == "s3" and parts.netloc:
            return cls(_s3(parts.netloc, parts.path.strip("/"), dict(parse_qsl(parts.query))), url=url)
        raise invalid_field("ATELIER_STORE", f"{url!r} is not supported; use file:///FOLDER, s3://BUCKET/PREFIX or memory://")

    # Blobs.

    def has_blob(self, file: File) -> bool:
        """Whether the blob is there in its whole size."""
        try:
            with _answering():
                return bool(obstore.head(self._objects, _blob(file.sha256))["size"] == file.size)
        except FileNotFoundError:
            return False

    def put_blob(self, path: Path, file: File) -> None:
        """Copies a local file in. Raises DATA_LOSS when its content is not what `file` says."""
        if self.has_blob(file):
            return
        digest = hash_file(path)
        if digest != file.sha256 or path.stat().st_size != file.size:
            raise data_loss("DIGEST_MISMATCH", f"{file.path}: content has SHA-256 {digest}, announced was {file.sha256}", file=file.path)
        self.put_object(_blob(file.sha256), path)

    def read_blob(self, sha256: str, offset: int = 0) -> Iterator[bytes]:
        """The blob's bytes from an offset on, in pieces of at most 1 MiB. Raises DATA_LOSS when it is gone."""
        try:
            yield from self.read(_blob(sha256), offset)
        except FileNotFoundError:
            raise data_loss("BLOB_MISSING", f"the store has lost the file with SHA-256 {sha256}; bring it in again") from None

    def read(self, key: str, offset: int = 0) -> Iterator[bytes]:
        """An object's bytes from an offset on, in pieces of at most 1 MiB. Raises FileNotFoundError."""
        with _answering():
            if offset >= obstore.head(self._objects, key)["size"]:
                return
            found = obstore.get(self._objects, key, options={"range": {"offset": offset}})
            for part in found.stream(min_chunk_size=PIECE_BYTES):
                view = memoryview(part)
                for begin in range(0, len(view), PIECE_BYTES):
                    yield bytes(view[begin : begin + PIECE_BYTES])

    def local_path(self, sha256: str) -> Path | None:
        """Where the blob lies on this machine's disk, if it does. Read only."""
        return self.object_path(_blob(sha256))

    def object_path(self, key: str) -> Path | None:
        """Where an object lies on this machine's disk, if it does. Read only."""
        return self.root / key if self.root else None

    def materialize(self, manifest: Manifest, folder: Path) -> None:
        """Lays the files out below `folder`: read-only hard links where they can be made, copies elsewhere. Every digest is checked."""
        for file in manifest.files:
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(1 if self.root else FETCHES) as pool:
            list(pool.map(lambda file: self._lay_out(file, folder / file.path), manifest.files))

    def _lay_out(self, file: File, target: Path) -> None:
        local = self.local_path(file.sha256)
        if local is not None and local.exists():
            _link(local, target)
            digest = hash_file(target)
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
        key, content = f"manifests/{manifest.digest}", manifest.canonical_json()
        try:
            with _answering():
                obstore.put(self._objects, key, content, mode="create")
        except AlreadyExistsError:
            if self.object(key) != content:  # damaged
                self.put_object(key, content)

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
        """Writes an object whole; a big file goes in parts."""
        try:
            with _answering():
                obstore.put(self._objects, key, content)
        except FileNotFoundError as error:  # the bucket
            raise _away(error) from error

    def object(self, key: str) -> bytes:
        """A small object. Raises FileNotFoundError."""
        with _answering():
            return bytes(obstore.get(self._objects, key).bytes())

    def delete(self, key: str) -> None:
        """Deletes an object; one that is not there is fine."""
        with suppress(FileNotFoundError), _answering():
            obstore.delete(self._objects, key)

    def delete_below(self, prefix: str) -> None:
        """Deletes all objects below a prefix that ends with `/`."""
        for found in self._list(prefix):
            self.delete(found["path"])

    def sweep_blobs(self, *, older_than: timedelta) -> int:
        """Deletes blobs that no manifest names: of deleted artifacts, or never committed; gives how many. Raises DATA_LOSS, and deletes
        nothing, when a manifest cannot be read.

        Only for a time when nobody commits: a blob that lies here already is not written again, and could go before its new manifest is
        there.
        """
        keys = [entry["path"] for entry in self._list("manifests/")]
        kept = {file.sha256 for key in keys for file in self.manifest(key.rpartition("/")[2]).files}
        limit = datetime.now(UTC) - older_than
        gone = [
            blob["path"] for blob in self._list("blobs/") if blob["last_modified"] < limit and blob["path"].rpartition("/")[2] not in kept
        ]
        for path in gone:
            self.delete(path)
        return len(gone)

    def _list(self, prefix: str) -> list[Any]:
        """All objects below a prefix: for what is deleted, and for sweeps; never on the way of a call that reads."""
        with _answering():
            return [entry for entries in obstore.list(self._objects, prefix) for entry in entries]


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except AlreadyExistsError:
        raise
    except BaseError as error:
        raise _away(error) from error


def _away(error: Exception) -> AtelierError:
    logger.warning("the artifact store failed: %s", error)
    return unavailable("STORE_UNAVAILABLE", "the artifact store does not answer: try again", retry_after_seconds=2.0)


def _s3(bucket: str, prefix: str, options: dict[str, str]) -> S3Store:
    unknown = sorted(set(options) - set(S3_OPTIONS))
    if unknown:
        raise invalid_field("ATELIER_STORE", f"{', '.join(unknown)} is not known of s3; {', '.join(S3_OPTIONS)} are")
    plain = options.get("endpoint", "").startswith("http://")
    given: Any = options
    return S3Store(bucket, prefix=prefix or None, client_options={"allow_http": plain}, retry_config=RETRIES, **given)


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
