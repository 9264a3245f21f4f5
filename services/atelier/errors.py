"""One error class: one sentence for people, one status, one reason for programs.

Whoever finds that a request cannot be served raises one of the constructors below; `atelier.rpc.interceptors` is the only place that
turns them into gRPC statuses with `google.rpc` details. What is not an `AtelierError` is a bug: it reaches the client as
`INTERNAL: internal error` and the log with its traceback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

DOMAIN = "atelier.dev"


class Status(Enum):
    """The canonical codes that Atelier answers with; the values are gRPC's."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True)
class Violation:
    """A bad field: its path in the request, and what is wrong with it."""

    field: str
    description: str


class AtelierError(Exception):
    """An error that a client may see.

    `message` is one sentence that says what to do; `reason` is UPPER_SNAKE, at most 63 characters; `metadata` holds the values that
    the sentence names; `retry_after_seconds` is set only where trying again makes sense.
    """

    def __init__(
        self,
        status: Status,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_seconds = retry_after_seconds


def invalid(violations: Sequence[Violation], *, reason: str = "INVALID_FIELDS") -> AtelierError:
    """INVALID_ARGUMENT that names every bad field at once."""
    assert violations, "an invalid request has at least one bad field"
    message = "; ".join(f"{v.field}: {v.description}" for v in violations)
    return AtelierError(Status.INVALID_ARGUMENT, reason, message, violations=violations)


def invalid_field(field: str, description: str, *, reason: str = "INVALID_FIELDS") -> AtelierError:
    """INVALID_ARGUMENT for one field."""
    return invalid([Violation(field, description)], reason=reason)


def not_found(resource: str, name: str, *, hint: str = "") -> AtelierError:
    """NOT_FOUND: `resource` is the word of the docs (artifact, job, deployment); `name` is empty where there is none at all."""
    sentence = f"there is no {resource}" + (f" {name!r}" if name else "") + (f"; {hint}" if hint else "")
    return AtelierError(Status.NOT_FOUND, f"{resource.upper().replace(' ', '_')}_NOT_FOUND", sentence, metadata={resource: name})


def failed_precondition(reason: str, message: str, **metadata: str) -> AtelierError:
    """FAILED_PRECONDITION: the request is right, the state of things is not."""
    return AtelierError(Status.FAILED_PRECONDITION, reason, message, metadata=metadata)


def data_loss(reason: str, message: str, **metadata: str) -> AtelierError:
    """DATA_LOSS: stored bytes are not what they were."""
    return AtelierError(Status.DATA_LOSS, reason, message, metadata=metadata)


def unavailable(reason: str, message: str, *, retry_after_seconds: float | None = None) -> AtelierError:
    """UNAVAILABLE: the same call may succeed later."""
    return AtelierError(Status.UNAVAILABLE, reason, message, retry_after_seconds=retry_after_seconds)
