"""What a worker sees of the world: its inputs, its outputs, its checkpoints, and someone to report to.

`JobContext` is the whole of it, so that the code of trainer, converter and compiler imports neither grpcio nor obstore. `jobs.worker`
implements it over the internal `Attempts` service; `FolderContext` over a folder, for tests and for machines that have nothing else.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from atelier.artifacts.manifest import Kind, Manifest, Source, describe_folder


class Cancelled(Exception):
    """The job was cancelled: stop, keep nothing."""


class Preempted(Exception):
    """The worker shall make room: write a checkpoint and let this pass; the job goes on later from there."""


@dataclass(frozen=True, kw_only=True)
class LocalArtifact:
    """An artifact whose files lie, read-only, in `folder`."""

    digest: str
    manifest: Manifest
    folder: Path


class JobContext(Protocol):
    """One attempt of one job. Used from one thread; `folder`s that come out of it must not be written to."""

    job: str
    """`jobs/{id}`."""
    workdir: Path
    """A folder of this attempt alone; removed when it ends."""

    def artifact(self, name: str) -> LocalArtifact:
        """An input of the job, by `artifacts/{digest}` or digest; fetched once, every file checked against its SHA-256."""

    def find(self, kind: Kind, key: str) -> LocalArtifact | None:
        """The newest artifact of a kind whose metadata has this `key`, with a signature that was checked."""

    def publish(
        self, role: str, kind: Kind, folder: Path, *, sources: Sequence[Source] = (), metadata: Mapping[str, Any] | None = None
    ) -> str:
        """Makes the files below `folder` an output of the job in the given role; gives its digest."""

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
        """Says how far the work is. Cheap: call it at every step, it is coalesced (latest wins, once a second)."""

    def log(self, message: str, *, level: str = "info") -> None:
        """A line for people: `info`, `warning` or `error`. No prompts."""

    def sample(self, step: int, index: int, png: bytes) -> None:
        """A picture made on the way."""

    def write_checkpoint(self, step: int, folder: Path, *, keep_full: int, keep_weights: int) -> None:
        """Commits a checkpoint with its event. Files below `weights/` are kept for the last `keep_weights` checkpoints (0: for all), the
        others (optimizer, RNG, position) for the last `keep_full`."""

    def checkpoints(self) -> list[int]:
        """Steps of this job's committed checkpoints, rising."""

    def read_checkpoint(self, *, owner: str = "", step: int = 0) -> tuple[int, Path] | None:
        """A checkpoint's step and folder: of this job, or of `owner` (`jobs/{id}`); the last one, or that of `step`."""

    def check_cancelled(self) -> None:
        """Raises Cancelled or Preempted when the work shall stop. Call it at every step."""


@dataclass
class FolderContext:
    """A context over a folder: inputs in `root/artifacts/{digest}`, everything else in memory or below `root`."""

    root: Path
    job: str = "jobs/local"
    events: list[dict[str, Any]] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)
    cancel_at_step: int | None = None
    preempt_at_step: int | None = None

    def __post_init__(self) -> None:
        self.workdir = self.root / "work"
        self.workdir.mkdir(parents=True, exist_ok=True)

    def add(self, kind: Kind, folder: Path, *, sources: Sequence[Source] = (), metadata: Mapping[str, Any] | None = None) -> str:
        """Takes a copy of a folder in as an artifact; gives its digest."""
        manifest = Manifest(kind=kind, files=describe_folder(folder), sources=tuple(sources), metadata=metadata or {})
        target = self.root / "artifacts" / manifest.digest
        if not target.exists():
            shutil.copytree(folder, target / "files")
            (target / "manifest.json").write_bytes(manifest.canonical_json())
        return manifest.digest

    def artifact(self, name: str) -> LocalArtifact:
        """See JobContext."""
        digest = name.removeprefix("artifacts/")
        folder = self.root / "artifacts" / digest
        return LocalArtifact(digest=digest, manifest=Manifest.from_json((folder / "manifest.json").read_bytes()), folder=folder / "files")

    def find(self, kind: Kind, key: str) -> LocalArtifact | None:
        """See JobContext."""
        for path in sorted((self.root / "artifacts").glob("*/manifest.json"), key=lambda p: p.stat().st_mtime, reverse=True):
            content = json.loads(path.read_bytes())
            if content["kind"] == kind and content["metadata"].get("key") == key:
                return self.artifact(path.parent.name)
        return None

    def publish(
        self, role: str, kind: Kind, folder: Path, *, sources: Sequence[Source] = (), metadata: Mapping[str, Any] | None = None
    ) -> str:
        """See JobContext."""
        self.outputs[role] = self.add(kind, folder, sources=sources, metadata=metadata)
        return self.outputs[role]

    def progress(self, phase: str, step: int, total_steps: int = 0, **figures: float | None) -> None:
        """See JobContext."""
        self.events.append({"phase": phase, "step": step, "total_steps": total_steps, **figures})

    def log(self, message: str, *, level: str = "info") -> None:
        """See JobContext."""
        self.events.append({"level": level, "message": message})

    def sample(self, step: int, index: int, png: bytes) -> None:
        """See JobContext."""
        (self.root / "samples").mkdir(exist_ok=True)
        (self.root / "samples" / f"{step:06d}-{index}.png").write_bytes(png)
        self.events.append({"sample": step, "index": index})

    def write_checkpoint(self, step: int, folder: Path, *, keep_full: int, keep_weights: int) -> None:
        """See JobContext."""
        target = self.root / "checkpoints" / self.job.removeprefix("jobs/") / f"{step:08d}"
        shutil.copytree(folder, target)
        kept = sorted(target.parent.iterdir())
        for old in kept[: len(kept) - keep_full]:
            for path in old.rglob("*"):
                if path.is_file() and path.relative_to(old).parts[0] != "weights":
                    path.unlink()
        if keep_weights:
            for old in kept[: len(kept) - max(keep_full, keep_weights)]:
                shutil.rmtree(old)
        self.events.append({"checkpoint": step})

    def checkpoints(self) -> list[int]:
        """See JobContext."""
        return [int(path.name) for path in sorted((self.root / "checkpoints" / self.job.removeprefix("jobs/")).glob("*"))]

    def read_checkpoint(self, *, owner: str = "", step: int = 0) -> tuple[int, Path] | None:
        """See JobContext."""
        root = self.root / "checkpoints" / (owner or self.job).removeprefix("jobs/")
        folders = [path for path in sorted(root.glob("*")) if not step or int(path.name) == step]
        return (int(folders[-1].name), folders[-1]) if folders else None

    def check_cancelled(self) -> None:
        """See JobContext; stops when the last progress has reached `cancel_at_step` or `preempt_at_step`."""
        steps = [e["step"] for e in self.events if "step" in e]
        if self.cancel_at_step is not None and steps and steps[-1] >= self.cancel_at_step:
            raise Cancelled
        if self.preempt_at_step is not None and steps and steps[-1] >= self.preempt_at_step:
            raise Preempted
