"""The `JobContext` of a worker process: over the `Attempts` service, and the store itself where the worker can reach it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from atelier.artifacts.manifest import CODE_KINDS, File, Kind, Manifest, Source, describe_folder, hash_file
from atelier.artifacts.messages import files_from_messages, files_to_messages, kind_from_enum, metadata_from_struct, sources_from_messages
from atelier.artifacts.signing import Verifier
from atelier.artifacts.store import Store
from atelier.errors import AtelierError, data_loss
from atelier.jobs.attempts_client import AttemptsClient
from atelier.jobs.context import Cancelled, LocalArtifact, Preempted
from atelier.jobs.events import LEVELS
from atelier.v1 import artifact_pb2, attempt_pb2, job_pb2

FLUSH_SECONDS = 0.5


class RemoteContext:
    """See JobContext. A thread sends events and heartbeats, so that the work never waits for them."""

    def __init__(
        self,
        client: AttemptsClient,
        claim: attempt_pb2.ClaimResponse,
        *,
        workdir: Path,
        verifier: Verifier,
        preempted: threading.Event,
    ) -> None:
        self.job = client.job
        self.workdir = workdir
        self.outputs: dict[str, str] = {}
        self._client = client
        self._claim = claim
        self._attempt = claim.attempt
        self._store = Store.open(claim.store_url) if claim.store_url else None
        self._verifier = verifier
        self._preempted = preempted
        self._cancelled = threading.Event()
        self._lost: AtelierError | None = None
        self._events: list[job_pb2.JobEvent] = []
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._steps = list(claim.checkpoints)
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> RemoteContext:
        self._thread.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join(timeout=5)

    def artifact(self, name: str) -> LocalArtifact:
        """See JobContext."""
        return self._fetch(self._client.manifest(self._attempt, name))

    def find(self, kind: Kind, key: str) -> LocalArtifact | None:
        """See JobContext."""
        message = self._client.find(self._attempt, kind, key)
        return self._fetch(message) if message is not None else None

    def publish(
        self, role: str, kind: Kind, folder: Path, *, sources: Sequence[Source] = (), metadata: Mapping[str, Any] | None = None
    ) -> str:
        """See JobContext."""
        manifest = Manifest(kind=kind, files=describe_folder(folder), sources=tuple(sources), metadata=metadata or {})
        paths = {file.sha256: folder / file.path for file in manifest.files}
        if self._store is not None:
            for file in manifest.files:
                self._store.put_blob(folder / file.path, file)
            paths = {}
        message = self._client.put(self._attempt, manifest, paths)
        self.outputs[role] = message.name.removeprefix("artifacts/")
        return self.outputs[role]

    def progress(
        self,
        phase: str,
        step: int,
        total_steps: int = 0,
        *,
        loss: float | None = None,
        learning_rate: float | None = None,
        eta_seconds: float | None = None,
        steps_per_second: float | None = None,
    ) -> None:
        """See JobContext."""
        progress = job_pb2.JobProgress(
            phase=phase, step=step, total_steps=total_steps, loss=loss, learning_rate=learning_rate,
            eta_seconds=eta_seconds, steps_per_second=steps_per_second,
        )  # fmt: skip
        with self._lock:
            last = self._events[-1].progress if self._events and self._events[-1].WhichOneof("event") == "progress" else None
            if last is not None and last.phase == phase:
                self._events.pop()
            self._events.append(job_pb2.JobEvent(progress=progress))

    def log(self, message: str, *, level: str = "info") -> None:
        """See JobContext."""
        with self._lock:
            self._events.append(job_pb2.JobEvent(log=job_pb2.LogLine(level=LEVELS[level], message=message)))

    def sample(self, step: int, index: int, png: bytes) -> None:
        """See JobContext."""
        with self._lock:
            self._events.append(job_pb2.JobEvent(sample=job_pb2.SamplePicture(step=step, index=index, png=png)))

    def write_checkpoint(self, step: int, folder: Path, *, keep_full: int, keep_weights: int) -> None:
        """See JobContext. What was said before it is sent before it."""
        self.flush()
        files = describe_folder(folder)
        paths = {file.sha256: folder / file.path for file in files}
        if self._store is not None:
            for file in files:
                key = f"checkpoints/{self.job.removeprefix('jobs/')}/{self._attempt}-{step:08d}/{file.path}"
                self._store.put_object(key, folder / file.path)
            paths = {}
        header = attempt_pb2.CheckpointHeader(
            job=self.job, attempt=self._attempt, step=step, files=files_to_messages(files), keep_full=keep_full, keep_weights=keep_weights
        )
        if self._client.write_checkpoint(header, paths):
            self._cancelled.set()
        self._steps.append(step)

    def checkpoints(self) -> list[int]:
        """See JobContext."""
        return sorted(set(self._steps))

    def read_checkpoint(self, *, owner: str = "", step: int = 0) -> tuple[int, Path] | None:
        """See JobContext."""
        folder = self.workdir / "checkpoint-in"
        found = self._client.read_checkpoint(self._attempt, owner=owner, step=step, folder=folder)
        return (found, folder) if found is not None else None

    def check_cancelled(self) -> None:
        """See JobContext."""
        if self._lost is not None:
            raise self._lost
        if self._cancelled.is_set():
            raise Cancelled
        if self._preempted.is_set():
            raise Preempted

    def flush(self) -> None:
        """Sends what waits."""
        with self._sending:
            with self._lock:
                events, self._events = self._events, []
            if events and self._client.append(self._attempt, events):
                self._cancelled.set()

    def _beat(self) -> None:
        ticks, every = 0, max(1, round(self._claim.heartbeat_seconds / FLUSH_SECONDS))
        while not self._closed.wait(FLUSH_SECONDS):
            ticks += 1
            try:
                self.flush()
                if ticks % every == 0 and self._client.heartbeat(self._attempt):
                    self._cancelled.set()
            except AtelierError as error:  # fenced off, or the control process is gone for good
                self._lost = error
                return

    def _fetch(self, message: artifact_pb2.Artifact) -> LocalArtifact:
        kind = kind_from_enum(message.kind)
        assert kind is not None
        manifest = Manifest(
            kind=kind,
            files=files_from_messages(message.files),
            sources=sources_from_messages(message.sources),
            metadata=metadata_from_struct(message.metadata),
        )
        digest = message.name.removeprefix("artifacts/")
        if kind in CODE_KINDS:
            self._verifier.check(digest, message.signature)
        folder = self.workdir / "artifacts" / digest
        if not folder.exists():
            if self._store is not None:
                self._store.materialize(manifest, folder)
            else:
                self._download(message.name, manifest.files, folder)
        return LocalArtifact(digest=digest, manifest=manifest, folder=folder)

    def _download(self, name: str, files: Sequence[File], folder: Path) -> None:
        for file in files:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            self._client.file(self._attempt, name, file, target)
            if hash_file(target) != file.sha256:
                raise data_loss("DIGEST_MISMATCH", f"{file.path} of {name} is damaged", file=file.path)
