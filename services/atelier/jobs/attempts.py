"""The internal Attempts service: what workers need of ledger, catalog and store, each with a token for its own job."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from google.protobuf import any_pb2

from atelier.artifacts.catalog import Catalog
from atelier.artifacts.manifest import CODE_KINDS, File, Kind, Manifest
from atelier.artifacts.messages import files_from_messages, files_to_messages, kind_from_enum, sources_from_messages, to_message
from atelier.artifacts.spool import Spool
from atelier.errors import AtelierError, Status, invalid_field, not_found
from atelier.jobs.job import Checkpoint, Output, State
from atelier.jobs.ledger import JobLedger
from atelier.jobs.servicer import picture_key
from atelier.v1 import artifact_pb2, attempt_pb2, attempt_pb2_grpc

HEARTBEAT_SECONDS = 5.0

WRITES: Mapping[str, frozenset[Kind]] = {
    "trainer": frozenset({Kind.MODEL, Kind.LORA, Kind.DATASET, Kind.RUN, Kind.TRAINING_ENGINE}),
    "converter": frozenset({Kind.MODEL, Kind.LORA, Kind.SINGLE_FILE}),
    "compiler": frozenset({Kind.MODEL, Kind.ENGINE, Kind.TORCHSCRIPT}),
}
"""The kinds that each service's jobs may write."""


class JobTokens:
    """Tokens that are good for one job each, derived from the installation's secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def token(self, job: str) -> str:
        """The token of `jobs/{id}`."""
        return hmac.new(self._secret, job.encode(), hashlib.sha256).hexdigest()

    def check(self, job: str, context: Any) -> None:
        """Raises PERMISSION_DENIED unless the call carries the job's token."""
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        if not hmac.compare_digest(str(given).encode(), f"Bearer {self.token(job)}".encode()):
            raise AtelierError(Status.PERMISSION_DENIED, "NOT_YOUR_JOB", "this token is not good for this job")


class AttemptsServicer(attempt_pb2_grpc.AttemptsServicer):
    """Answers the workers of one control process."""

    def __init__(self, *, ledger: JobLedger, catalog: Catalog, spool: Spool, tokens: JobTokens, store_url: str) -> None:
        """`store_url` is told to workers, which then read and write the store by themselves; empty where they cannot reach it."""
        self._store_url = store_url
        self._ledger = ledger
        self._catalog = catalog
        self._spool = spool
        self._tokens = tokens

    async def Claim(self, request: attempt_pb2.ClaimRequest, context: Any) -> attempt_pb2.ClaimResponse:  # type: ignore[override]
        """Begins an attempt."""
        self._tokens.check(request.job, context)
        job = await asyncio.to_thread(self._ledger.claim, request.job)
        checkpoints = await asyncio.to_thread(self._ledger.checkpoints, request.job)
        return attempt_pb2.ClaimResponse(
            attempt=job.attempt,
            spec=any_pb2.Any.FromString(job.spec),
            store_url=self._store_url,
            checkpoints=[c.step for c in checkpoints],
            heartbeat_seconds=HEARTBEAT_SECONDS,
        )

    async def Heartbeat(self, request: attempt_pb2.HeartbeatRequest, context: Any) -> attempt_pb2.HeartbeatResponse:  # type: ignore[override]
        """Says that the worker lives."""
        self._tokens.check(request.job, context)
        return attempt_pb2.HeartbeatResponse(cancel=await asyncio.to_thread(self._ledger.heartbeat, request.job, request.attempt))

    async def Append(self, request: attempt_pb2.AppendRequest, context: Any) -> attempt_pb2.AppendResponse:  # type: ignore[override]
        """Adds events; pictures go to the store, before their event."""
        self._tokens.check(request.job, context)
        return attempt_pb2.AppendResponse(cancel=await asyncio.to_thread(self._append, request))

    async def PutArtifact(self, request_iterator: AsyncIterator[attempt_pb2.PutArtifactRequest], context: Any) -> artifact_pb2.Artifact:  # type: ignore[override]
        """Brings an output in; blobs that the worker has put into the store by itself need not be sent."""
        header: attempt_pb2.PutArtifactHeader | None = None
        files: dict[str, File] = {}
        async for request in request_iterator:
            if request.WhichOneof("part") == "header":
                header = request.header
                self._tokens.check(header.job, context)
                job = await asyncio.to_thread(self._ledger.check, header.job, header.attempt)
                kind = kind_from_enum(header.kind)
                if kind not in WRITES[job.service]:
                    raise AtelierError(Status.PERMISSION_DENIED, "KIND_NOT_ALLOWED", f"a {job.service} job does not write {kind}")
                files = {file.sha256: file for file in files_from_messages(header.files)}
            else:
                await self._receive(files, request.chunk)
        if header is None:
            raise invalid_field("header", "must be the first message")
        return await asyncio.to_thread(self._put, header, tuple(files_from_messages(header.files)))

    async def FetchArtifact(  # type: ignore[override]
        self, request: attempt_pb2.FetchArtifactRequest, context: Any
    ) -> AsyncIterator[attempt_pb2.FetchArtifactResponse]:
        """Sends a manifest, or a file of it."""
        self._tokens.check(request.job, context)
        job = await asyncio.to_thread(self._ledger.check, request.job, request.attempt)
        record = await asyncio.to_thread(self._catalog.get, request.artifact)
        # What FindArtifact can find has a key; it may be fetched by any job.
        if record.digest not in job.inputs and record.job != job.name and "key" not in record.manifest.metadata:
            raise AtelierError(Status.PERMISSION_DENIED, "NOT_AN_INPUT", f"{record.name} is no input of {job.name}")
        yield attempt_pb2.FetchArtifactResponse(artifact=to_message(record))
        if not request.sha256:
            return
        if request.sha256 not in {file.sha256 for file in record.manifest.files}:
            raise not_found("file", request.sha256)
        pieces = self._catalog.store.read_blob(request.sha256, request.offset)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield attempt_pb2.FetchArtifactResponse(data=piece)

    async def FindArtifact(self, request: attempt_pb2.FindArtifactRequest, context: Any) -> attempt_pb2.FindArtifactResponse:  # type: ignore[override]
        """Finds an artifact by the key in its metadata."""
        self._tokens.check(request.job, context)
        kind = kind_from_enum(request.kind)
        if kind is None or not request.key:
            raise invalid_field("key", "kind and key must be set")
        record = await asyncio.to_thread(self._catalog.find, kind, request.key)
        return attempt_pb2.FindArtifactResponse(artifact=to_message(record) if record else None)

    async def WriteCheckpoint(  # type: ignore[override]
        self, request_iterator: AsyncIterator[attempt_pb2.WriteCheckpointRequest], context: Any
    ) -> attempt_pb2.WriteCheckpointResponse:
        """Commits a checkpoint; files that the worker has put into the store by itself need not be sent."""
        header: attempt_pb2.CheckpointHeader | None = None
        files: dict[str, File] = {}
        async for request in request_iterator:
            if request.WhichOneof("part") == "header":
                header = request.header
                self._tokens.check(header.job, context)
                await asyncio.to_thread(self._ledger.check, header.job, header.attempt)
                files = {file.sha256: file for file in files_from_messages(header.files)}
            else:
                await self._receive(files, request.chunk)
        if header is None:
            raise invalid_field("header", "must be the first message")
        return attempt_pb2.WriteCheckpointResponse(cancel=await asyncio.to_thread(self._checkpoint, header, files))

    async def ReadCheckpoint(  # type: ignore[override]
        self, request: attempt_pb2.ReadCheckpointRequest, context: Any
    ) -> AsyncIterator[attempt_pb2.ReadCheckpointResponse]:
        """Sends a checkpoint: of the job itself, or of one that it was submitted to read."""
        self._tokens.check(request.job, context)
        job = await asyncio.to_thread(self._ledger.check, request.job, request.attempt)
        owner = request.owner or job.name
        if owner != job.name and owner not in job.reads:
            raise AtelierError(Status.PERMISSION_DENIED, "NOT_YOUR_JOB", f"{job.name} may not read checkpoints of {owner}")
        found = [c for c in await asyncio.to_thread(self._ledger.checkpoints, owner) if not request.step or c.step == request.step]
        if not found:
            raise not_found("checkpoint", f"{owner}/checkpoint-{request.step}")
        checkpoint = found[-1]
        yield attempt_pb2.ReadCheckpointResponse(step=checkpoint.step, files=files_to_messages(checkpoint.files))
        for file in checkpoint.files:
            offset = 0
            pieces = self._catalog.store.read(f"{checkpoint.prefix}/{file.path}")
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                chunk = attempt_pb2.ReadCheckpointResponse(chunk=artifact_pb2.FileChunk(sha256=file.sha256, offset=offset, data=piece))
                yield chunk
                offset += len(piece)

    async def Complete(self, request: attempt_pb2.CompleteRequest, context: Any) -> attempt_pb2.CompleteResponse:  # type: ignore[override]
        """Ends the attempt, and the job with it unless the failure may pass."""
        self._tokens.check(request.job, context)
        await asyncio.to_thread(self._complete, request)
        return attempt_pb2.CompleteResponse()

    async def _receive(self, files: Mapping[str, File], chunk: artifact_pb2.FileChunk) -> None:
        if chunk.sha256 not in files:
            raise invalid_field("chunk.sha256", "is not of a file that the header announced; the header comes first")
        if not chunk.offset:  # a worker begins anew when it was cut off
            await asyncio.to_thread(self._spool.drop, chunk.sha256)
        await asyncio.to_thread(self._spool.write, files[chunk.sha256], chunk.offset, chunk.data)

    def _append(self, request: attempt_pb2.AppendRequest) -> bool:
        payloads, progress = [], b""
        for event in request.events:
            if event.WhichOneof("event") == "sample":
                key = picture_key(request.job, event.sample.step, event.sample.index)
                self._catalog.store.put_object(key, event.sample.png)
                event.sample.ClearField("png")
            elif event.WhichOneof("event") == "progress":
                progress = event.progress.SerializeToString()
            payloads.append(event.SerializeToString())
        return self._ledger.append(request.job, request.attempt, payloads, progress)

    def _put(self, header: attempt_pb2.PutArtifactHeader, files: tuple[File, ...]) -> artifact_pb2.Artifact:
        kind = kind_from_enum(header.kind)
        assert kind is not None
        manifest = Manifest(
            kind=kind, files=files, sources=sources_from_messages(header.sources), metadata=json.loads(header.metadata_json or "{}")
        )
        for file in files:
            if self._spool.size(file.sha256):
                self._catalog.store.put_blob(self._spool.path(file.sha256), file)
                self._spool.drop(file.sha256)
        self._ledger.check(header.job, header.attempt)  # it may have been fenced off while the bytes came
        return to_message(self._catalog.commit(manifest, job=header.job, sign=kind in CODE_KINDS))

    def _checkpoint(self, header: attempt_pb2.CheckpointHeader, files: Mapping[str, File]) -> bool:
        store, job = self._catalog.store, header.job.removeprefix("jobs/")
        prefix = f"checkpoints/{job}/{header.attempt}-{header.step:08d}"
        for file in files_from_messages(header.files):
            if self._spool.size(file.sha256):
                store.put_object(f"{prefix}/{file.path}", self._spool.path(file.sha256))
        for sha256 in files:
            self._spool.drop(sha256)
        checkpoint = Checkpoint(step=header.step, prefix=prefix, files=files_from_messages(header.files))
        dropped, cancel = self._ledger.checkpoint(
            header.job, header.attempt, checkpoint, keep_full=header.keep_full, keep_weights=header.keep_weights
        )
        for key in dropped:
            store.delete(key)
        return cancel

    def _complete(self, request: attempt_pb2.CompleteRequest) -> None:
        outputs = [Output(role=o.role, digest=o.artifact.removeprefix("artifacts/")) for o in request.outputs]
        if not request.HasField("error"):
            job = self._ledger.check(request.job, request.attempt)  # before tags move
            for tag in job.tags[: 16 if outputs else 0]:
                self._catalog.tag(tag, f"artifacts/{outputs[0].digest}")
            self._ledger.complete(request.job, request.attempt, state=State.SUCCEEDED, outputs=outputs)
            return
        state = State.CANCELLED if request.error.code == Status.CANCELLED.value else State.FAILED
        self._ledger.complete(request.job, request.attempt, state=state, outputs=outputs, error=request.error.SerializeToString())
