"""The ledger's tables of jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Index, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from atelier.jobs.job import Job, Output, State
from atelier.ledger import Base


class JobRow(Base):
    """A job."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_state_create_time", "state", "create_time", "id"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    service: Mapped[str] = mapped_column(String(32), index=True)
    method: Mapped[str] = mapped_column(String(64))
    spec: Mapped[bytes] = mapped_column(LargeBinary)
    state: Mapped[str] = mapped_column(String(16), index=True)
    attempt: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    create_time: Mapped[datetime] = mapped_column(index=True)
    start_time: Mapped[datetime | None]
    end_time: Mapped[datetime | None]
    heartbeat_time: Mapped[datetime | None]
    last_sequence: Mapped[int] = mapped_column(default=0)
    progress: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    error: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    outputs: Mapped[list[Any]] = mapped_column(JSON, default=list)
    inputs: Mapped[list[Any]] = mapped_column(JSON, default=list)
    reads: Mapped[list[Any]] = mapped_column(JSON, default=list)
    plan: Mapped[list[Any]] = mapped_column(JSON, default=list)
    tags: Mapped[list[Any]] = mapped_column(JSON, default=list)
    processes: Mapped[int] = mapped_column(default=1)
    pool: Mapped[str] = mapped_column(String(64), default="", server_default="")
    waits_for: Mapped[str] = mapped_column(Text, default="", server_default="")


class RequestRow(Base):
    """A request that was accepted, so that its repetition gives the same job."""

    __tablename__ = "job_requests"
    method: Mapped[str] = mapped_column(String(64), primary_key=True)
    request_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    job: Mapped[str] = mapped_column(String(64))


class EventRow(Base):
    """An event of a job."""

    __tablename__ = "job_events"
    job: Mapped[str] = mapped_column(String(64), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[datetime]
    payload: Mapped[bytes] = mapped_column(LargeBinary)


class CheckpointRow(Base):
    """A committed checkpoint of a job."""

    __tablename__ = "checkpoints"
    job: Mapped[str] = mapped_column(String(64), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    prefix: Mapped[str] = mapped_column(String(256))
    files: Mapped[list[Any]] = mapped_column(JSON)


def to_job(row: JobRow) -> Job:
    """The job as a value, good after its session."""
    return Job(
        id=row.id, service=row.service, method=row.method, spec=row.spec, state=State(row.state), attempt=row.attempt,
        failures=row.failures, create_time=row.create_time, start_time=row.start_time, end_time=row.end_time,
        heartbeat_time=row.heartbeat_time, last_sequence=row.last_sequence, progress=row.progress, error=row.error,
        inputs=tuple(row.inputs), reads=tuple(row.reads), outputs=tuple(Output(**o) for o in row.outputs), plan=tuple(row.plan),
        tags=tuple(row.tags), processes=row.processes, pool=row.pool, waits_for=row.waits_for,
    )  # fmt: skip
