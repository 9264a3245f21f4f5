"""Several processes that train together (torchrun): rank 0 has the context, the others follow it.

Every rank makes the same calls in the same order. Rank 0 (`RecordedContext`) writes what each call gave into the shared folder; a follower
waits for it and gives the same. What is only said (progress, log, samples, checkpoints) followers keep to themselves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atelier.artifacts.manifest import Kind, Manifest, Source
from atelier.jobs.context import JobContext, LocalArtifact

PATIENCE_SECONDS = 3600.0


class RecordedContext:
    """Rank 0's context: passes everything on, and leaves the answers for the followers."""

    def __init__(self, context: JobContext, *, spec: bytes) -> None:
        self._context = context
        self._calls = 0
        self.job = context.job
        self.workdir = context.workdir
        _leave(self.workdir / "spec", spec)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def artifact(self, name: str) -> LocalArtifact:
        """See JobContext."""
        artifact = self._context.artifact(name)
        self._record_artifact(artifact)
        return artifact

    def find(self, kind: Kind, key: str) -> LocalArtifact | None:
        """See JobContext."""
        artifact = self._context.find(kind, key)
        self._record_artifact(artifact)
        return artifact

    def publish(
        self, role: str, kind: Kind, folder: Path, *, sources: Sequence[Source] = (), metadata: Mapping[str, Any] | None = None
    ) -> str:
        """See JobContext."""
        digest = self._context.publish(role, kind, folder, sources=sources, metadata=metadata)
        self._record(digest)
        return digest

    def checkpoints(self) -> list[int]:
        """See JobContext."""
        steps = self._context.checkpoints()
        self._record(steps)
        return steps

    def read_checkpoint(self, *, owner: str = "", step: int = 0) -> tuple[int, Path] | None:
        """See JobContext."""
        found = self._context.read_checkpoint(owner=owner, step=step)
        self._record([found[0], str(found[1])] if found else None)
        return found

    def _record_artifact(self, artifact: LocalArtifact | None) -> None:
        self._record([artifact.digest, str(artifact.folder), artifact.manifest.canonical_json().decode()] if artifact else None)

    def _record(self, answer: Any) -> None:
        _leave(self.workdir / f"call-{self._calls}", json.dumps(answer).encode())
        self._calls += 1


class FollowerContext:
    """See JobContext; for ranks above 0."""

    def __init__(self, *, job: str, workdir: Path) -> None:
        self.job = job
        self.workdir = workdir
        self._calls = 0

    def spec(self) -> bytes:
        """The job's spec, as rank 0 has it."""
        return _await(self.workdir / "spec")

    def artifact(self, name: str) -> LocalArtifact:
        """See JobContext."""
        found = self._found()
        assert found is not None
        return found

    def find(self, kind: Kind, key: str) -> LocalArtifact | None:
        """See JobContext."""
        return self._found()

    def publish(
        self, role: str, kind: Kind, folder: Path, *, sources: Sequence[Source] = (), metadata: Mapping[str, Any] | None = None
    ) -> str:
        """See JobContext: rank 0 does it."""
        return str(self._replay())

    def progress(self, phase: str, step: int, total_steps: int = 0, **figures: float | None) -> None:
        """See JobContext: rank 0 says it."""

    def log(self, message: str, *, level: str = "info") -> None:
        """See JobContext: rank 0 says it."""

    def sample(self, step: int, index: int, png: bytes) -> None:
        """See JobContext: rank 0 says it."""

    def write_checkpoint(self, step: int, folder: Path, *, keep_full: int, keep_weights: int) -> None:
        """See JobContext: rank 0 does it."""

    def checkpoints(self) -> list[int]:
        """See JobContext."""
        return [int(step) for step in self._replay()]

    def read_checkpoint(self, *, owner: str = "", step: int = 0) -> tuple[int, Path] | None:
        """See JobContext."""
        answer = self._replay()
        return (int(answer[0]), Path(answer[1])) if answer else None

    def check_cancelled(self) -> None:
        """See JobContext: rank 0 is told, and tells the others in the loop."""

    def _found(self) -> LocalArtifact | None:
        answer = self._replay()
        if answer is None:
            return None
        return LocalArtifact(digest=answer[0], folder=Path(answer[1]), manifest=Manifest.from_json(answer[2].encode()))

    def _replay(self) -> Any:
        answer = json.loads(_await(self.workdir / f"call-{self._calls}"))
        self._calls += 1
        return answer


def _leave(path: Path, content: bytes) -> None:
    path.with_suffix(".part").write_bytes(content)
    path.with_suffix(".part").rename(path)


def _await(path: Path) -> bytes:
    end = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"rank 0 has not left {path.name}")
        time.sleep(0.05)
    return path.read_bytes()
