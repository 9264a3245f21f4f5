"""`AtelierError` <-> gRPC status with `google.rpc` details: `ErrorInfo` always, `BadRequest` with all bad fields, `RetryInfo`."""

from __future__ import annotations

import typing

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from atelier.errors import DOMAIN, AtelierError, Status, Violation

DETAILS = "grpc-status-details-bin"
"""Trailing metadata that carries `google.rpc.Status`."""
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def to_proto(error: AtelierError) -> status_pb2.Status:
    """The error as `google.rpc.Status`."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description, reason=error.reason)
            for v in error.violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if error.retry_after_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        details.append(retry)
    packed = []
    for detail in details:
        packed.append(Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=error.status.value, message=error.message, details=packed)


def from_proto(status: status_pb2.Status) -> AtelierError:
    """The error that `to_proto` wrote; a status without our details keeps its code and sentence."""
    reason, metadata, violations, retry = "UNKNOWN", {}, [], None
    for detail in status.details:
        info, bad, delay = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations = [Violation(v.field, v.description) for v in bad.field_violations]
        elif detail.Unpack(delay):
            retry = delay.retry_delay.ToMilliseconds() / 1000
    known = status.code in {s.value for s in Status}
    return AtelierError(
        Status(status.code) if known else Status.INTERNAL,
        reason,
        status.message,
        metadata=metadata,
        violations=violations,
        retry_after_seconds=retry,
    )


def from_call(error: grpc.RpcError) -> AtelierError:
    """The error behind a failed call, synchronous or not, for clients."""
    metadata: typing.Any = (error.trailing_metadata() if hasattr(error, "trailing_metadata") else ()) or ()
    details = next((value for key, value in metadata if key == DETAILS), None)
    if details is not None:
        return from_proto(status_pb2.Status.FromString(details))
    code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    return from_proto(status_pb2.Status(code=code.value[0], message=getattr(error, "details", str)() or code.name))


def abort_arguments(error: AtelierError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]:
    """Code, sentence and trailing metadata for `context.abort`."""
    status = to_proto(error)
    return _BY_NUMBER[status.code], status.message, ((DETAILS, status.SerializeToString()),)
