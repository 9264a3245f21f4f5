"""Artifacts, from the client's side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc

from atelier.artifacts.importing import examine
from atelier.artifacts.manifest import Kind
from atelier.client import artifacts
from atelier.client.calls import Calls, Repetition
from atelier.v1 import artifact_pb2, artifact_pb2_grpc

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Is told bytes done and bytes in all."""


class ArtifactService:
    """Brings artifacts in and out. A name is `artifacts/{digest}`, a digest, 8 or more of its digits, or a tag."""

    def __init__(self, channel: grpc.Channel, calls: Calls) -> None:
        self._stub = artifact_pb2_grpc.ArtifactsStub(channel)
        self._calls = calls

    def upload(
        self,
        path: Path,
        *,
        kind: Kind | None = None,
        tags: Sequence[str] = (),
        sources: Sequence[artifact_pb2.ArtifactSource] = (),
        metadata: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> artifact_pb2.Artifact:
        """Brings in a folder or file of this machine; its kind is told by its content. What is there already is not sent again."""
        told = kind or examine(path).kind
        return self._repeat(
            lambda: artifacts.upload(
                self._stub, told, path, tags=list(tags), sources=list(sources), metadata=dict(metadata or {}), progress=progress
            )
        )

    def download(self, name: str, folder: Path, *, progress: Progress | None = None) -> artifact_pb2.Artifact:
        """Writes the files of an artifact below a folder, each checked against its SHA-256."""
        artifact = self.get(name)
        self._repeat(lambda: artifacts.download(self._stub, artifact.name, folder, progress=progress))
        return artifact

    def read(self, name: str, path: str) -> bytes:
        """One file of an artifact."""

        def read() -> bytes:
            request = artifact_pb2.DownloadRequest(name=name, path=path)
            return b"".join(response.data for response in self._stub.Download(request))

        return self._repeat(read)

    def get(self, name: str) -> artifact_pb2.Artifact:
        """One artifact. Raises NOT_FOUND."""
        return self._calls.unary(self._stub.GetArtifact, artifact_pb2.GetArtifactRequest(name=name), idempotent=True)

    def list(self, kind: Kind | None = None) -> Iterator[artifact_pb2.Artifact]:
        """All artifacts, newest first, page by page."""
        value = artifact_pb2.ArtifactKind.Value(f"ARTIFACT_KIND_{kind or 'UNSPECIFIED'}")
        token = ""
        while True:
            request = artifact_pb2.ListArtifactsRequest(kind=value, page_token=token)
            page = self._calls.unary(self._stub.ListArtifacts, request, idempotent=True)
            yield from page.artifacts
            token = page.next_page_token
            if not token:
                return

    def tag(self, tag: str, name: str) -> artifact_pb2.Artifact:
        """Moves a tag to an artifact."""
        return self._calls.unary(self._stub.Tag, artifact_pb2.TagRequest(tag=tag, artifact=name), idempotent=True)

    def untag(self, tag: str) -> artifact_pb2.Artifact:
        """Removes a tag; gives what it pointed at."""
        return self._calls.unary(self._stub.Tag, artifact_pb2.TagRequest(tag=tag), idempotent=False)

    def delete(self, name: str, *, validate_only: bool = False) -> None:
        """Deletes an artifact, by its full name. Raises FAILED_PRECONDITION naming what uses it."""
        request = artifact_pb2.DeleteArtifactRequest(name=name, validate_only=validate_only)
        self._calls.unary(self._stub.DeleteArtifact, request, idempotent=validate_only)

    def import_(
        self, source: str, *, kind: Kind | None = None, tags: Sequence[str] = (), allow_download: bool = False, revision: str = ""
    ) -> artifact_pb2.Artifact:
        """Brings in a folder on the server's disk, or a repository of its Hugging Face cache."""
        request = artifact_pb2.ImportRequest(
            source=source,
            kind=artifact_pb2.ArtifactKind.Value(f"ARTIFACT_KIND_{kind or 'UNSPECIFIED'}"),
            tags=tags,
            allow_download=allow_download,
            revision=revision,
        )
        return self._calls.unary(self._stub.Import, request, idempotent=True, timeout_seconds=None)

    def _repeat(self, call: Callable[[], T]) -> T:
        repetition = Repetition(calls=self._calls, idempotent=True, most=3)
        while True:
            try:
                answer = call()
                self._calls.answered.set()
                return answer
            except grpc.RpcError as error:
                repetition.wait_or_raise(self._calls.error(error))


def kind_of(artifact: artifact_pb2.Artifact) -> Kind:
    """The artifact's kind, as people say it."""
    return Kind(artifact_pb2.ArtifactKind.Name(artifact.kind).removeprefix("ARTIFACT_KIND_"))
