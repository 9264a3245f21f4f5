"""Events of a job as the bytes that the ledger keeps."""

from __future__ import annotations

from atelier.errors import AtelierError
from atelier.jobs.job import State
from atelier.rpc.status import to_proto
from atelier.v1 import job_pb2

LEVELS = {"info": job_pb2.LogLine.LEVEL_INFO, "warning": job_pb2.LogLine.LEVEL_WARNING, "error": job_pb2.LogLine.LEVEL_ERROR}


def state_event(state: State) -> bytes:
    """The state changed."""
    return job_pb2.JobEvent(state=state_to_enum(state)).SerializeToString()


def attempt_event(attempt: int, reason: str) -> bytes:
    """A worker began or was lost."""
    return job_pb2.JobEvent(attempt=job_pb2.AttemptChange(attempt=attempt, reason=reason)).SerializeToString()


def checkpoint_event(step: int) -> bytes:
    """A checkpoint was committed."""
    return job_pb2.JobEvent(checkpoint=job_pb2.CheckpointWritten(step=step)).SerializeToString()


def log_event(message: str, level: str = "info") -> bytes:
    """A line for people."""
    return job_pb2.JobEvent(log=job_pb2.LogLine(level=LEVELS[level], message=message)).SerializeToString()


def error_bytes(error: AtelierError) -> bytes:
    """An error as the serialized `google.rpc.Status` that the ledger keeps."""
    content: bytes = to_proto(error).SerializeToString()
    return content


def state_to_enum(state: State) -> job_pb2.JobState.ValueType:
    """The state as its enum value."""
    return job_pb2.JobState.Value(f"JOB_STATE_{state}")


def state_from_enum(value: job_pb2.JobState.ValueType) -> State | None:
    """The state behind an enum value; None when it was not set."""
    return State(job_pb2.JobState.Name(value).removeprefix("JOB_STATE_")) if value else None
