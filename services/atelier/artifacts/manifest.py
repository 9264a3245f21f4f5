"""What an artifact is: kind, files, sources and facts, named by the digest of their canonical JSON."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

DIGEST = re.compile(r"[0-9a-f]{64}")
MAX_FILES = 10_000


class Kind(StrEnum):
    """The kinds of artifacts; the words are those of docs and protos."""

    DATASET = "DATASET"
    MODEL = "MODEL"
    LORA = "LORA"
    SINGLE_FILE = "SINGLE_FILE"
    ENGINE = "ENGINE"
    TRAINING_ENGINE = "TRAINING_ENGINE"
    TORCHSCRIPT = "TORCHSCRIPT"
    RUN = "RUN"
    LEGACY = "LEGACY"


CODE_KINDS = frozenset({Kind.ENGINE, Kind.TRAINING_ENGINE, Kind.TORCHSCRIPT})
"""Kinds that run code when they are loaded: written by this installation's own jobs only, and signed."""


@dataclass(frozen=True, kw_only=True)
class File:
    """One file: `path` with `/` inside the artifact, `size` in bytes, `sha256` of its content in hexadecimal."""

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        check_path(self.path)
        if self.size < 0:
            raise ValueError(f"{self.path}: size must not be negative, got {self.size}")
        if not DIGEST.fullmatch(self.sha256):
            raise ValueError(f"{self.path}: sha256 must be 64 lower case hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an artifact was made from: its digest, and the role it played (`base`, `dataset`, `lora`, ...)."""

    role: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An artifact without its bytes. Equal content made in equal ways from equal sources is the same artifact."""

    kind: Kind
    files: tuple[File, ...]
    sources: tuple[Source, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        paths = [file.path.casefold() for file in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError("two files have the same path (upper and lower case count as equal)")
        if not 0 < len(paths) <= MAX_FILES:
            raise ValueError(f"an artifact has 1 to {MAX_FILES} files, got {len(paths)}")
        object.__setattr__(self, "files", tuple(sorted(self.files, key=lambda file: file.path)))

    @property
    def size(self) -> int:
        """Sum of the files' sizes in bytes."""
        return sum(file.size for file in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.canonical_json()).hexdigest()

    def canonical_json(self) -> bytes:
        """JSON with sorted keys and no white space: what is hashed, signed and stored."""
        content = {
            "files": [{"path": f.path, "sha256": f.sha256, "size": f.size} for f in self.files],
            "kind": str(self.kind),
            "metadata": dict(self.metadata),
            "sources": [{"digest": s.digest, "role": s.role} for s in self.sources],
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Reads what `canonical_json` wrote."""
        content = json.loads(text)
        return cls(
            kind=Kind(content["kind"]),
            files=tuple(File(**f) for f in content["files"]),
            sources=tuple(Source(**s) for s in content["sources"]),
            metadata=content["metadata"],
        )


def check_path(path: str) -> None:
    """Raises ValueError unless `path` is relative, stays inside, and is a name that every file system takes."""
    parts = PurePosixPath(path).parts
    if not parts or path != "/".join(parts) or path.startswith("/") or any(part in ("..", ".") for part in parts):
        raise ValueError(f"{path!r} is not a plain relative path")
    if any(len(part.encode()) > 255 or "\\" in part or ":" in part or not part.isprintable() for part in parts):
        raise ValueError(f"{path!r} has a name that not every file system takes")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_folder(folder: Path) -> tuple[File, ...]:
    """The files below a folder, hashed. Links are followed; names that begin with a dot are left out."""
    paths: Sequence[Path] = sorted(path for path in folder.rglob("*") if path.is_file())
    inside = [(path, path.relative_to(folder)) for path in paths]
    return tuple(
        File(path=name.as_posix(), size=path.stat().st_size, sha256=hash_file(path))
        for path, name in inside
        if not any(part.startswith(".") for part in name.parts)
    )
