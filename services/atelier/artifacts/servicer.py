"""The Artifacts service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from atelier.artifacts import importing, safety
from atelier.artifacts.catalog import Catalog, Record, full_tag
from atelier.artifacts.manifest import File, Kind, Manifest, hash_file
from atelier.artifacts.messages import (
    files_from_messages,
    kind_from_enum,
    metadata_from_struct,
    sources_from_messages,
    to_message,
)
from atelier.artifacts.spool import Spool
from atelier.errors import invalid_field, not_found
from atelier.v1 import artifact_pb2, artifact_pb2_grpc

MAX_PAGE = 500
MAX_TAGS = 16


class ArtifactsServicer(artifact_pb2_grpc.ArtifactsServicer):
    """Brings artifacts in and out."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        spool: Spool,
        import_roots: Sequence[Path] = (),
        allow_download: bool = False,
        on_deleted: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self._catalog = catalog
        self._spool = spool
        self._import_roots = list(import_roots)
        self._allow_download = allow_download
        self._on_deleted = on_deleted

    async def Upload(self, request_iterator: AsyncIterator[artifact_pb2.UploadRequest], context: Any) -> artifact_pb2.Artifact:  # type: ignore[override]
        """Takes the header, then pieces; commits when all is there and has been looked at."""
        header: artifact_pb2.UploadHeader | None = None
        files: dict[str, File] = {}
        async for request in request_iterator:
            if request.WhichOneof("part") == "header" and header is None:
                header = request.header
                files = {file.sha256: file for file in _check_header(header)}
            elif header is None or request.chunk.sha256 not in files:
                raise invalid_field("chunk.sha256", "is not of a file that the header announced; the header comes first")
            else:
                chunk = request.chunk
                await asyncio.to_thread(self._spool.write, files[chunk.sha256], chunk.offset, chunk.data)
        if header is None:
            raise invalid_field("header", "must be the first message")
        return to_message(await asyncio.to_thread(self._commit, header))

    async def QueryUpload(self, request: artifact_pb2.QueryUploadRequest, context: Any) -> artifact_pb2.QueryUploadResponse:  # type: ignore[override]
        """Says how much of each file is there."""
        files = files_from_messages(request.files)

        def committed() -> list[artifact_pb2.QueryUploadResponse.Progress]:
            store = self._catalog.store
            sizes = [f.size if store.has_blob(f) else self._spool.size(f.sha256) for f in files]
            return [
                artifact_pb2.QueryUploadResponse.Progress(sha256=f.sha256, committed_bytes=size)
                for f, size in zip(files, sizes, strict=True)
            ]

        return artifact_pb2.QueryUploadResponse(files=await asyncio.to_thread(committed))

    async def Download(self, request: artifact_pb2.DownloadRequest, context: Any) -> AsyncIterator[artifact_pb2.DownloadResponse]:  # type: ignore[override]
        """Sends one file from an offset."""
        record = await asyncio.to_thread(self._catalog.get, request.name)
        found = [file for file in record.manifest.files if file.path == request.path]
        if not found:
            raise not_found("file", request.path, hint=f"{record.name} has {', '.join(f.path for f in record.manifest.files[:20])}")
        if not 0 <= request.offset <= found[0].size:
            raise invalid_field("offset", f"must be between 0 and {found[0].size}")
        pieces = self._catalog.store.read_blob(found[0].sha256, request.offset)
        offset = request.offset
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield artifact_pb2.DownloadResponse(offset=offset, data=piece)
            offset += len(piece)

    async def GetArtifact(self, request: artifact_pb2.GetArtifactRequest, context: Any) -> artifact_pb2.Artifact:  # type: ignore[override]
        """One artifact."""
        return to_message(await asyncio.to_thread(self._catalog.get, request.name))

    async def ListArtifacts(self, request: artifact_pb2.ListArtifactsRequest, context: Any) -> artifact_pb2.ListArtifactsResponse:  # type: ignore[override]
        """A page of artifacts."""
        if request.page_size < 0:
            raise invalid_field("page_size", "must not be negative")
        size = min(request.page_size or 50, MAX_PAGE)
        kind = kind_from_enum(request.kind)
        records, token = await asyncio.to_thread(lambda: self._catalog.list(kind, page_size=size, page_token=request.page_token))
        return artifact_pb2.ListArtifactsResponse(artifacts=[to_message(r) for r in records], next_page_token=token)

    async def Tag(self, request: artifact_pb2.TagRequest, context: Any) -> artifact_pb2.Artifact:  # type: ignore[override]
        """Moves or removes a tag."""
        return to_message(await asyncio.to_thread(self._catalog.tag, request.tag, request.artifact))

    async def DeleteArtifact(  # type: ignore[override]
        self, request: artifact_pb2.DeleteArtifactRequest, context: Any
    ) -> artifact_pb2.DeleteArtifactResponse:
        """Deletes what nothing uses."""
        if not request.name.startswith("artifacts/"):
            raise invalid_field("name", "give the full `artifacts/{digest}`: a tag may have moved")
        record = await asyncio.to_thread(lambda: self._catalog.delete(request.name, validate_only=request.validate_only))
        if not request.validate_only:
            await asyncio.to_thread(self._on_deleted, record)
        return artifact_pb2.DeleteArtifactResponse()

    async def Import(self, request: artifact_pb2.ImportRequest, context: Any) -> artifact_pb2.Artifact:  # type: ignore[override]
        """Brings in a folder on this machine, or a repository from the local Hub cache."""
        tags = [full_tag(tag) for tag in request.tags]
        return to_message(await asyncio.to_thread(self._import, request, tags))

    def _import(self, request: artifact_pb2.ImportRequest, tags: Sequence[str]) -> Record:
        path = Path(request.source)
        if path.is_absolute():
            if not importing.below(path, self._import_roots):
                raise invalid_field("source", "lies in no folder that the operator allows (ATELIER_IMPORT_ROOTS); upload it instead")
            found = importing.examine(path, kind_from_enum(request.kind))
        else:
            found = importing.hub_folder(
                request.source, request.revision, allow_download=request.allow_download, downloads=self._allow_download
            )
        safety.check_files(found.kind, found.files)
        files = []
        for name, source in found.files.items():
            files.append(File(path=name, size=source.stat().st_size, sha256=hash_file(source)))
            self._catalog.store.put_blob(source, files[-1])
        return self._catalog.commit(Manifest(kind=found.kind, files=tuple(files), metadata=found.metadata), tags=tags)

    def _commit(self, header: artifact_pb2.UploadHeader) -> Record:
        manifest = _manifest(header)
        store = self._catalog.store
        paths = {}
        for file in manifest.files:
            local = store.local_path(file.sha256)
            if store.has_blob(file):
                paths[file.path] = local if local else self._fetch(file)
            elif self._spool.size(file.sha256) == file.size:
                paths[file.path] = self._spool.path(file.sha256)
                self._spool.path(file.sha256).touch()
            else:
                raise invalid_field("files", f"{file.path} has not arrived whole; QueryUpload says where to go on")
        try:
            safety.check_files(manifest.kind, paths)
            for file in manifest.files:
                store.put_blob(paths[file.path], file)
            return self._catalog.commit(manifest, tags=header.tags)
        finally:
            for file in manifest.files:
                self._spool.drop(file.sha256)

    def _fetch(self, file: File) -> Path:
        path = self._spool.path(file.sha256)
        with path.open("wb") as stream:
            for piece in self._catalog.store.read_blob(file.sha256):
                stream.write(piece)
        return path


def _manifest(header: artifact_pb2.UploadHeader) -> Manifest:
    try:
        return Manifest(
            kind=kind_from_enum(header.kind) or Kind.LEGACY,
            files=files_from_messages(header.files, field="header.files"),
            sources=sources_from_messages(header.sources),
            metadata=metadata_from_struct(header.metadata),
        )
    except ValueError as error:
        raise invalid_field("header.files", str(error)) from error


def _check_header(header: artifact_pb2.UploadHeader) -> tuple[File, ...]:
    kind = kind_from_enum(header.kind)
    if kind is None:
        raise invalid_field("header.kind", "must be set")
    if len(header.tags) > MAX_TAGS:
        raise invalid_field("header.tags", f"at most {MAX_TAGS}, got {len(header.tags)}")
    for tag in header.tags:
        full_tag(tag)
    safety.check_kind(kind)
    return _manifest(header).files
