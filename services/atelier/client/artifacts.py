"""Bytes between this machine and the store: only what is missing is sent, and every file that comes is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import json_format, struct_pb2

from atelier.artifacts.importing import examine
from atelier.artifacts.manifest import File, Kind, hash_file
from atelier.artifacts.messages import files_from_messages, files_to_messages, kind_to_enum
from atelier.errors import data_loss
from atelier.v1 import artifact_pb2, artifact_pb2_grpc

PIECE_BYTES = 1 << 20
Progress = Callable[[int, int], None]


def upload(
    stub: artifact_pb2_grpc.ArtifactsStub,
    kind: Kind,
    path: Path,
    *,
    tags: Sequence[str] = (),
    sources: Sequence[artifact_pb2.ArtifactSource] = (),
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> artifact_pb2.Artifact:
    """Brings a folder or file in, from where an upload that was cut off has ended. Raises grpc.RpcError."""
    found = examine(path, kind)
    files = [File(path=name, size=place.stat().st_size, sha256=hash_file(place)) for name, place in found.files.items()]
    announced = files_to_messages(files)
    answer = stub.QueryUpload(artifact_pb2.QueryUploadRequest(files=announced))
    committed = {entry.sha256: entry.committed_bytes for entry in answer.files}
    facts = json_format.ParseDict({**found.metadata, **(metadata or {})}, struct_pb2.Struct())
    header = artifact_pb2.UploadHeader(kind=kind_to_enum(kind), files=announced, sources=sources, metadata=facts, tags=tags)
    places = {file.sha256: found.files[file.path] for file in files}
    total = sum(place.stat().st_size for place in places.values())

    def requests() -> Iterator[artifact_pb2.UploadRequest]:
        yield artifact_pb2.UploadRequest(header=header)
        done = sum(committed.values())
        for sha256, place in places.items():
            for chunk in _chunks(sha256, place, committed.get(sha256, 0)):
                yield artifact_pb2.UploadRequest(chunk=chunk)
                done += len(chunk.data)
                if progress:
                    progress(done, total)

    return stub.Upload(requests())


def download(stub: artifact_pb2_grpc.ArtifactsStub, name: str, folder: Path, *, progress: Progress | None = None) -> artifact_pb2.Artifact:
    """Writes an artifact's files below a folder. A file that is there whole is kept, one that was cut off goes on.

    Raises grpc.RpcError, and DATA_LOSS for a file that arrived damaged.
    """
    artifact = stub.GetArtifact(artifact_pb2.GetArtifactRequest(name=name))
    done = 0
    for file in files_from_messages(artifact.files):  # which refuses paths that lead out of the folder
        target = folder / file.path
        if not (target.is_file() and target.stat().st_size == file.size and hash_file(target) == file.sha256):
            _download_file(stub, artifact.name, file, target)
        done += file.size
        if progress:
            progress(done, artifact.size_bytes)
    return artifact


def _download_file(stub: artifact_pb2_grpc.ArtifactsStub, name: str, file: File, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{file.sha256}.part")
    begin = part.stat().st_size if part.exists() and part.stat().st_size <= file.size else 0
    responses = stub.Download(artifact_pb2.DownloadRequest(name=name, path=file.path, offset=begin))
    try:
        with part.open("ab" if begin else "wb") as stream:
            for response in responses:
                stream.write(response.data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error  # a full disk names no file
    if hash_file(part) != file.sha256:
        part.unlink()
        raise data_loss("DIGEST_MISMATCH", f"{file.path} arrived damaged: try again", file=file.path)
    part.replace(target)


def _chunks(sha256: str, place: Path, offset: int) -> Iterator[artifact_pb2.FileChunk]:
    with place.open("rb") as stream:
        stream.seek(offset)
        while piece := stream.read(PIECE_BYTES):
            yield artifact_pb2.FileChunk(sha256=sha256, offset=offset, data=piece)
            offset += len(piece)
