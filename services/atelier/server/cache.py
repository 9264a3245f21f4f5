"""Models and engines on a replica's disk, fetched from the installation once."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from pathlib import Path

import grpc

from atelier.artifacts.manifest import Manifest
from atelier.artifacts.messages import files_from_messages, kind_from_enum
from atelier.artifacts.store import Store
from atelier.client.artifacts import download
from atelier.errors import AtelierError, Status
from atelier.rpc.status import from_call
from atelier.v1 import artifact_pb2, artifact_pb2_grpc

logger = logging.getLogger("atelier.replica")

RECORD_SECONDS = 60.0
"""Deadline for asking for an artifact's record."""


class Cache:
    """A folder for each artifact below `folder`; `store`, where it can be reached, is read directly."""

    def __init__(self, folder: Path, *, artifacts: artifact_pb2_grpc.ArtifactsStub, store: Store | None, replica: str) -> None:
        self._folder = folder
        self._artifacts = artifacts
        self._store = store
        self._replica = replica

    def fetch(self, digest: str) -> tuple[Path, artifact_pb2.Artifact]:
        """The artifact's folder, every digest checked when it was filled, and its record. Raises AtelierError."""
        record = self._record(digest)
        folder = self._folder / digest
        if folder.exists():
            return folder, record
        part = self._folder / f".{digest}.{self._replica}"
        shutil.rmtree(part, ignore_errors=True)
        kind = kind_from_enum(record.kind)
        assert kind is not None
        if self._store is not None:
            self._store.materialize(Manifest(kind=kind, files=files_from_messages(record.files)), part)
        else:
            try:
                download(self._artifacts, record.name, part)
            except grpc.RpcError as error:
                raise from_call(error) from error
        with suppress(OSError):  # another replica of this machine was first
            part.rename(folder)
        if not folder.exists():
            raise AtelierError(Status.UNAVAILABLE, "CACHE_NOT_WRITTEN", f"artifacts/{digest} could not be put into the replica's cache")
        shutil.rmtree(part, ignore_errors=True)
        return folder, record

    def tidy(self) -> None:
        """Removes what replicas that died had begun to fetch, and artifacts that have been deleted. Only before anything is fetched."""
        for place in sorted(self._folder.glob("*")) if self._folder.exists() else ():
            if not place.name.startswith("."):
                try:
                    self._record(place.name)
                    continue
                except AtelierError as error:
                    if error.status is not Status.NOT_FOUND:
                        logger.warning("the cache is not tidied: %s", error)
                        return
            logger.info("removed %s from the cache", place.name)
            shutil.rmtree(place, ignore_errors=True)

    def _record(self, digest: str) -> artifact_pb2.Artifact:
        request = artifact_pb2.GetArtifactRequest(name=f"artifacts/{digest}")
        try:
            record: artifact_pb2.Artifact = self._artifacts.GetArtifact(request, timeout=RECORD_SECONDS)
        except grpc.RpcError as error:
            raise from_call(error) from error
        return record
