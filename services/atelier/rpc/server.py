"""A gRPC server's life as one `with` block: bind, health, reflection, serve, drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from atelier.rpc.channel import MAX_MESSAGE_BYTES
from atelier.rpc.interceptors import Authorize, CallInterceptor
from atelier.rpc.tls import Tls

_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A client may ping each minute, also between calls, without being told to go away.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.http2.max_ping_strikes", 0),
)

SERVING = health_pb2.HealthCheckResponse.SERVING


@dataclass(frozen=True, kw_only=True)
class Service:
    """A service that a server answers: its descriptor, the generated `add_..._to_server`, and the servicer."""

    descriptor: ServiceDescriptor
    add: Callable[[Any, grpc.aio.Server], None]
    servicer: Any


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A server that answers."""

    port: int
    health: HealthServicer


@asynccontextmanager
async def serving(
    listen: str,
    services: Sequence[Service],
    *,
    authorize: Authorize,
    handlers: Sequence[grpc.GenericRpcHandler] = (),
    reflected: Sequence[str] = (),
    tls: Tls | None = None,
    grace_seconds: float = 10.0,
) -> AsyncIterator[Bound]:
    """Serves until the block ends, then drains: health first, then running calls get `grace_seconds`.

    `listen` is `host:port`, port 0 draws one; `handlers` answer what no service does (the gateway's pass-through), `reflected` names their
    services for reflection. Raises OSError when the port is taken.
    """
    server = grpc.aio.server(interceptors=[CallInterceptor(authorize)], options=_OPTIONS)
    for service in services:
        service.add(service.servicer, server)
    if handlers:
        server.add_generic_rpc_handlers(tuple(handlers))
    names = [service.descriptor.full_name for service in services] + list(reflected)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection([*names, "grpc.health.v1.Health", reflection.SERVICE_NAME], server)
    try:
        port = server.add_secure_port(listen, tls.server_credentials()) if tls else server.add_insecure_port(listen)
    except RuntimeError as error:
        sentence = f"cannot listen on {listen}: it is in use, or not of this machine; give another by --listen, port 0 draws one"
        raise OSError(sentence) from error
    await server.start()
    for name in ["", *names]:
        await health.set(name, SERVING)
    try:
        yield Bound(port=port, health=health)
    finally:
        await health.enter_graceful_shutdown()
        await asyncio.shield(server.stop(grace_seconds))


@asynccontextmanager
async def plain_health(listen: str, health: HealthServicer) -> AsyncIterator[int]:
    """Answers `grpc.health.v1` alone, in the clear and to everybody, until the block ends: a kubelet's probe knows neither TLS nor tokens.

    Gives the port. Raises OSError when it is taken.
    """
    server = grpc.aio.server(options=_OPTIONS)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {listen}: is it in use?") from error
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)
