"""Channels with keepalive, retries and message limits that fit `atelier.rpc.server`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc

MAX_MESSAGE_BYTES = 16 << 20

IDEMPOTENT = (
    ("Artifacts", ("QueryUpload", "GetArtifact", "ListArtifacts", "Tag")),
    ("Jobs", ("GetJob", "ListJobs", "CancelJob")),
    ("Server", ("GetDeployment", "ListDeployments", "ListPools", "PlanEngines")),
    # Idempotent by request_id, which the Python client always sends.
    ("Trainer", ("Train", "Promote")),
    ("Converter", ("Convert", "Merge")),
    ("Compiler", ("Compile",)),
    # Idempotent by their fencing token.
    ("Attempts", ("Heartbeat",)),
    ("Replicas", ("Report",)),
)
"""Calls that gRPC itself repeats while the server answers UNAVAILABLE; nothing else is repeated."""

_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": f"atelier.v1.{service}", "method": method} for service, methods in IDEMPOTENT for method in methods],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
    }
)

_OPTIONS = (
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    # A server that is started again answers within seconds; gRPC's own two minutes between tries are for crowds of clients.
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


class _Token(grpc.AuthMetadataPlugin):  # type: ignore[misc]
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, _context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        callback((("authorization", f"Bearer {self._token}"),), None)


class _TokenInterceptor(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[misc]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[misc]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[misc]
    grpc.StreamStreamClientInterceptor,  # type: ignore[misc]
):
    """gRPC gives call credentials to encrypted channels only; on a plain one the token travels as ordinary metadata."""

    def __init__(self, token: str) -> None:
        self._entry = ("authorization", f"Bearer {token}")

    def _add(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        metadata = (*(details.metadata or ()), self._entry)
        return continuation(details._replace(metadata=metadata), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = intercept_stream_stream = _add  # type: ignore[assignment]


def channel(target: str, *, token: str = "", credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """A channel to `host:port`, for threads. With `credentials` it is encrypted."""
    if credentials is not None:
        if token:
            credentials = grpc.composite_channel_credentials(credentials, grpc.metadata_call_credentials(_Token(token)))
        return grpc.secure_channel(target, credentials, options=_OPTIONS)
    plain = grpc.insecure_channel(target, options=_OPTIONS)
    return grpc.intercept_channel(plain, _TokenInterceptor(token)) if token else plain


def aio_channel(target: str, *, credentials: grpc.ChannelCredentials | None = None, repeats: bool = True) -> grpc.aio.Channel:
    """A channel to `host:port`, for asyncio, encrypted with `credentials`; the caller sends its token as metadata (see `bearer`).

    `repeats`: whether gRPC repeats idempotent calls; not for calls that another has made and may not have given a request id.
    """
    options = (*_OPTIONS, ("grpc.enable_retries", int(repeats)))
    if credentials is not None:
        return grpc.aio.secure_channel(target, credentials, options=options)
    return grpc.aio.insecure_channel(target, options=options)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata that carries a token."""
    return (("authorization", f"Bearer {token}"),)
