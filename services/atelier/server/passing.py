"""One address for all: calls of services that run elsewhere are passed on as raw bytes, and their answers back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from atelier import telemetry, tracing
from atelier.errors import unavailable
from atelier.rpc.channel import aio_channel
from atelier.rpc.status import from_call

PASSED = ("Trainer", "Converter", "Compiler")
"""The only services that are passed on; never the internal ones."""


class PassThrough(grpc.GenericRpcHandler):  # type: ignore[misc]
    """`addresses`: service (`Trainer`) -> `host:port`. Their calls are all unary."""

    def __init__(self, addresses: Mapping[str, str], *, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._channels = {
            service: aio_channel(address, credentials=credentials, repeats=False)
            for service, address in addresses.items()
            if service in PASSED
        }

    @property
    def names(self) -> list[str]:
        """Full names of the services that are passed on."""
        return [f"atelier.v1.{service}" for service in self._channels]

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """A handler for a call of a service that is passed on."""
        _, _, path = str(details.method).partition("/atelier.v1.")
        channel = self._channels.get(path.partition("/")[0])
        if channel is None:
            return None
        method = str(details.method)

        async def forward(request: bytes, context: Any) -> bytes:
            metadata = [(k, v) for k, v in context.invocation_metadata() or () if k == "authorization"]
            metadata.append((telemetry.REQUEST_ID, telemetry.request_id()))
            call: Any = channel.unary_unary(method)
            with tracing.span(method[1:], kind="client") as span:
                try:
                    answer: bytes = await call(request, metadata=[*metadata, *span.metadata], timeout=context.time_remaining())
                except grpc.aio.AioRpcError as error:
                    span.fail(error.code().name)
                    if error.code() is grpc.StatusCode.UNAVAILABLE:
                        sentence = f"{path.partition('/')[0]} does not answer"
                        raise unavailable("SERVICE_UNAVAILABLE", sentence, retry_after_seconds=1.0) from None
                    raise from_call(error) from None
            return answer

        return grpc.unary_unary_rpc_method_handler(forward)

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels.values():
            await channel.close()
