"""A worker's calls to `Attempts`: repeated while the control process is away, up to 15 minutes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import grpc

from atelier.artifacts.manifest import File, Kind, Manifest, hash_file
from atelier.artifacts.messages import files_to_messages, kind_to_enum
from atelier.artifacts.store import PIECE_BYTES
from atelier.errors import AtelierError, data_loss
from atelier.rpc.channel import channel
from atelier.rpc.status import from_call, to_proto
from atelier.rpc.tls import Tls
from atelier.v1 import artifact_pb2, attempt_pb2, attempt_pb2_grpc, job_pb2

PATIENCE_SECONDS = 15 * 60
HEARTBEAT_SECONDS, APPEND_SECONDS = 30.0, 60.0
"""How long one try may take; the others are ended by the channel's keepalive."""
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""How a control process that is away shows: it cannot be reached, or its machine is gone without a word."""
Answer = TypeVar("Answer")


class AttemptsClient:
    """Thread-safe."""

    def __init__(self, target: str, *, job: str, token: str, tls: Tls | None = None) -> None:
        self.job = job
        self._stub = attempt_pb2_grpc.AttemptsStub(channel(target, token=token, credentials=tls.channel_credentials() if tls else None))

    def claim(self, worker: str) -> attempt_pb2.ClaimResponse:
        """Begins an attempt."""
        return _patiently(lambda: self._stub.Claim(attempt_pb2.ClaimRequest(job=self.job, worker=worker)))

    def heartbeat(self, attempt: int) -> bool:
        """Whether the job shall stop."""
        request = attempt_pb2.HeartbeatRequest(job=self.job, attempt=attempt)
        return _patiently(lambda: self._stub.Heartbeat(request, timeout=HEARTBEAT_SECONDS)).cancel

    def append(self, attempt: int, events: Iterable[job_pb2.JobEvent]) -> bool:
        """Adds events; tells whether the job shall stop."""
        request = attempt_pb2.AppendRequest(job=self.job, attempt=attempt, events=events)
        return _patiently(lambda: self._stub.Append(request, timeout=APPEND_SECONDS)).cancel

    def find(self, attempt: int, kind: Kind, key: str) -> artifact_pb2.Artifact | None:
        """The newest artifact with this key."""
        request = attempt_pb2.FindArtifactRequest(job=self.job, attempt=attempt, kind=kind_to_enum(kind), key=key)
        answer = _patiently(lambda: self._stub.FindArtifact(request))
        return answer.artifact if answer.HasField("artifact") else None

    def manifest(self, attempt: int, name: str) -> artifact_pb2.Artifact:
        """An artifact without its bytes."""
        request = attempt_pb2.FetchArtifactRequest(job=self.job, attempt=attempt, artifact=name)
        return _patiently(lambda: next(iter(self._stub.FetchArtifact(request)))).artifact

    def file(self, attempt: int, name: str, file: File, target: Path) -> None:
        """Writes one file of an artifact."""

        def fetch() -> None:
            request = attempt_pb2.FetchArtifactRequest(job=self.job, attempt=attempt, artifact=name, sha256=file.sha256)
            with target.open("wb") as stream:
                for response in self._stub.FetchArtifact(request):
                    stream.write(response.data)

        _patiently(fetch)

    def put(self, attempt: int, manifest: Manifest, paths: Mapping[str, Path]) -> artifact_pb2.Artifact:
        """Brings an output in; `paths` (by SHA-256) are the files whose bytes have to be sent."""
        header = attempt_pb2.PutArtifactHeader(
            job=self.job,
            attempt=attempt,
            kind=kind_to_enum(manifest.kind),
            files=files_to_messages(manifest.files),
            sources=[artifact_pb2.ArtifactSource(role=s.role, artifact=f"artifacts/{s.digest}") for s in manifest.sources],
            metadata_json=json.dumps(dict(manifest.metadata), allow_nan=False),
        )

        def requests() -> Iterator[attempt_pb2.PutArtifactRequest]:
            yield attempt_pb2.PutArtifactRequest(header=header)
            for chunk in _chunks(paths):
                yield attempt_pb2.PutArtifactRequest(chunk=chunk)

        return _patiently(lambda: self._stub.PutArtifact(requests()))

    def write_checkpoint(self, header: attempt_pb2.CheckpointHeader, paths: Mapping[str, Path]) -> bool:
        """Commits a checkpoint; tells whether the job shall stop."""

        def requests() -> Iterator[attempt_pb2.WriteCheckpointRequest]:
            yield attempt_pb2.WriteCheckpointRequest(header=header)
            for chunk in _chunks(paths):
                yield attempt_pb2.WriteCheckpointRequest(chunk=chunk)

        return _patiently(lambda: self._stub.WriteCheckpoint(requests())).cancel

    def read_checkpoint(self, attempt: int, *, owner: str, step: int, folder: Path) -> int | None:
        """Lays a checkpoint out below `folder`; gives its step, None where there is none."""
        request = attempt_pb2.ReadCheckpointRequest(job=self.job, attempt=attempt, owner=owner, step=step)

        def read() -> int:
            stream = iter(self._stub.ReadCheckpoint(request))
            first = next(stream)
            targets = {file.sha256: [folder / f.path for f in first.files if f.sha256 == file.sha256] for file in first.files}
            for path in (p for paths in targets.values() for p in paths):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"")
            for response in stream:
                for path in targets[response.chunk.sha256]:
                    with path.open("r+b") as file:
                        file.seek(response.chunk.offset)
                        file.write(response.chunk.data)
            damaged = sorted(path.name for sha256, paths in targets.items() for path in paths if hash_file(path) != sha256)
            if damaged:
                sentence = f"checkpoint {first.step} is damaged in the store ({', '.join(damaged)}): resume from an earlier one"
                raise data_loss("DIGEST_MISMATCH", sentence)
            return first.step

        try:
            return _patiently(read)
        except AtelierError as error:
            if error.reason == "CHECKPOINT_NOT_FOUND":
                return None
            raise

    def complete(self, attempt: int, *, outputs: Mapping[str, str], error: AtelierError | None) -> None:
        """Ends the attempt; `outputs` are digests by role, the main one first."""
        request = attempt_pb2.CompleteRequest(
            job=self.job,
            attempt=attempt,
            outputs=[job_pb2.JobOutput(role=role, artifact=f"artifacts/{digest}") for role, digest in outputs.items()],
            error=to_proto(error) if error else None,
        )
        _patiently(lambda: self._stub.Complete(request))


def _chunks(paths: Mapping[str, Path]) -> Iterator[artifact_pb2.FileChunk]:
    for sha256, path in paths.items():
        offset = 0
        with path.open("rb") as stream:
            while piece := stream.read(PIECE_BYTES):
                yield artifact_pb2.FileChunk(sha256=sha256, offset=offset, data=piece)
                offset += len(piece)


def _patiently(call: Callable[[], Answer]) -> Answer:
    end, delay = time.monotonic() + PATIENCE_SECONDS, 0.2
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() not in AWAY or time.monotonic() > end:
                raise from_call(error) from None
        time.sleep(delay)
        delay = min(2 * delay, 10.0)
