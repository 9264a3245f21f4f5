"""A job as the ledger knows it. What the services themselves say (spec, events, progress, error) stays opaque bytes here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from atelier.artifacts.manifest import File

ID = re.compile(r"[a-z0-9-]{4,63}")


class State(StrEnum):
    """Where a job stands; the words are those of docs and protos."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


@dataclass(frozen=True, kw_only=True)
class Output:
    """An artifact that a job made: its digest and the role it plays."""

    role: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job to be accepted. `spec` is a serialized `google.protobuf.Any`; `inputs` are digests that must not be deleted meanwhile;
    `reads` are other jobs (`jobs/{id}`) whose checkpoints it may read; `processes` train together; `pool` is the id of the pool whose
    hardware it needs, empty for none."""

    service: str
    method: str
    request_id: str
    body_sha256: str
    spec: bytes
    inputs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    plan: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    processes: int = 1
    pool: str = ""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job. `attempt` is the fencing token of the last claim; `heartbeat_time` is when its worker was last heard of; `progress` and
    `error` are serialized messages or empty; `waits_for` is what its worker waits for before it can begin (room in its pool, an image), in
    a sentence, empty where it waits for nothing that is known."""

    id: str
    service: str
    method: str
    spec: bytes
    state: State
    attempt: int
    failures: int
    create_time: datetime
    start_time: datetime | None
    end_time: datetime | None
    heartbeat_time: datetime | None
    last_sequence: int
    progress: bytes
    error: bytes
    outputs: tuple[Output, ...]
    inputs: tuple[str, ...]
    reads: tuple[str, ...]
    plan: tuple[str, ...]
    tags: tuple[str, ...]
    processes: int
    pool: str
    waits_for: str

    @property
    def name(self) -> str:
        """`jobs/{id}`."""
        return f"jobs/{self.id}"


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened: `payload` is a serialized `JobEvent` without sequence and time."""

    sequence: int
    time: datetime
    payload: bytes


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint: its files lie in the store below `prefix`."""

    step: int
    prefix: str
    files: tuple[File, ...]
