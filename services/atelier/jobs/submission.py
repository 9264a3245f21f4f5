"""How a service turns a request into a job."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf import any_pb2
from google.protobuf.message import Message

from atelier.errors import invalid_field
from atelier.jobs.job import NewJob
from atelier.jobs.ledger import JobLedger
from atelier.jobs.messages import to_message
from atelier.v1 import job_pb2

MAX_REQUEST_ID = 64


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a request comes to, after its check: `spec` is the request with defaults filled in and names resolved to digests."""

    spec: Message
    inputs: Sequence[str] = ()
    """Digests that must not be deleted while the job lasts."""
    reads: Sequence[str] = ()
    """Other jobs (`jobs/{id}`) whose checkpoints it may read."""
    plan: Sequence[str] = ()
    """What will be done, in lines for people."""
    tags: Sequence[str] = ()
    """Tags for its main output."""
    processes: int = 1
    """Processes that work together."""
    pool: str = ""
    """Id of the pool whose hardware it needs; empty for none."""


class Submission:
    """Accepts the jobs of one service; `wake` tells the reconciler that there is one."""

    def __init__(self, *, ledger: JobLedger, service: str, wake: Callable[[], None]) -> None:
        self._ledger = ledger
        self._service = service
        self._wake = wake

    def submit(self, method: str, request: Message, request_id: str, work: Work) -> job_pb2.Job:
        """The job; a repeated request gives the same one. Raises INVALID_ARGUMENT for a request id with another body."""
        if len(request_id) > MAX_REQUEST_ID:
            raise invalid_field("request_id", f"at most {MAX_REQUEST_ID} characters, got {len(request_id)}")
        new = NewJob(
            service=self._service,
            method=method,
            request_id=request_id,
            body_sha256=hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest(),
            spec=_any(work.spec).SerializeToString(),
            inputs=tuple(digest.removeprefix("artifacts/") for digest in work.inputs),
            reads=tuple(work.reads),
            plan=tuple(work.plan),
            tags=tuple(work.tags),
            processes=work.processes,
            pool=work.pool,
        )
        job = self._ledger.submit(new)
        self._wake()
        return to_message(job)

    def preview(self, work: Work) -> job_pb2.Job:
        """What `validate_only` answers: spec and plan, no name."""
        return job_pb2.Job(spec=_any(work.spec), plan=work.plan)


def _any(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
