"""Artifacts as protobuf messages, for the servicers."""

from __future__ import annotations

import json
from collections.abc import Iterable

from google.protobuf import json_format, struct_pb2

from atelier.artifacts.catalog import Record
from atelier.artifacts.manifest import DIGEST, File, Kind, Source
from atelier.errors import Violation, invalid, invalid_field
from atelier.v1 import artifact_pb2

_PREFIX = "ARTIFACT_KIND_"


def to_message(record: Record) -> artifact_pb2.Artifact:
    """The artifact as the API shows it."""
    message = artifact_pb2.Artifact(
        name=record.name,
        kind=kind_to_enum(record.manifest.kind),
        files=files_to_messages(record.manifest.files),
        sources=[artifact_pb2.ArtifactSource(role=s.role, artifact=f"artifacts/{s.digest}") for s in record.manifest.sources],
        size_bytes=record.manifest.size,
        tags=record.tags,
        job=record.job,
        signature=record.signature,
    )
    message.create_time.FromDatetime(record.create_time)
    json_format.Parse(json.dumps(dict(record.manifest.metadata)), message.metadata)
    return message


def metadata_from_struct(struct: struct_pb2.Struct) -> dict[str, object]:
    """The facts of an upload; whole numbers stay whole. Raises INVALID_ARGUMENT for a number that JSON cannot hold."""
    try:
        text = json_format.MessageToJson(struct)
    except json_format.SerializeToJsonError:
        raise invalid_field("metadata", "holds a number that is not finite, or a value without a kind") from None
    content: dict[str, object] = json.loads(text, parse_float=lambda t: int(f) if (f := float(t)).is_integer() else f)
    return content


def kind_to_enum(kind: Kind) -> artifact_pb2.ArtifactKind.ValueType:
    """The kind as its enum value."""
    return artifact_pb2.ArtifactKind.Value(_PREFIX + kind)


def kind_from_enum(value: int) -> Kind | None:
    """The kind behind an enum value; None when it was not set."""
    return Kind(artifact_pb2.ArtifactKind.Name(value).removeprefix(_PREFIX)) if value else None  # type: ignore[arg-type]


def files_to_messages(files: Iterable[File]) -> list[artifact_pb2.ArtifactFile]:
    """Files as messages."""
    return [artifact_pb2.ArtifactFile(path=f.path, size=f.size, sha256=f.sha256) for f in files]


def files_from_messages(messages: Iterable[artifact_pb2.ArtifactFile], *, field: str = "files") -> tuple[File, ...]:
    """Files from messages. Raises INVALID_ARGUMENT naming every bad one."""
    files, violations = [], []
    for index, message in enumerate(messages):
        try:
            files.append(File(path=message.path, size=message.size, sha256=message.sha256))
        except ValueError as error:
            violations.append(Violation(f"{field}[{index}]", str(error)))
    if violations:
        raise invalid(violations)
    return tuple(files)


def sources_from_messages(messages: Iterable[artifact_pb2.ArtifactSource]) -> tuple[Source, ...]:
    """Sources from messages. Raises INVALID_ARGUMENT naming every one that is no digest: a tag would move."""
    sources = tuple(Source(role=m.role, digest=m.artifact.removeprefix("artifacts/")) for m in messages)
    bad = [index for index, source in enumerate(sources) if not DIGEST.fullmatch(source.digest)]
    if bad:
        raise invalid([Violation(f"sources[{index}].artifact", "give `artifacts/{digest}`") for index in bad])
    return sources
