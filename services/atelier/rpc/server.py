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

from atelier.meters import UNMEASURED, Meters
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
    # Calls that run go on over the connection of before: longer than any transfer of a model takes.
    ("grpc.max_connection_age_grace_ms", 3_600_000),
)

MAX_CONNECTION_AGE_SECONDS = 300.0
"""After it, give or take a tenth, a client connects anew between two calls, and so finds servers that have come since."""

SERVING = health_pb2.HealthCheckResponse.SERVING


@dataclass(frozen=True, kw_only=True)
class Service:
    """A service that a server answers: its descriptor, the generated `add_..._to_server`, and the servicer."""

    descriptor: ServiceDescriptor
    add: Callable[[Any, grpc.aio.Server], None]
    servicer: Any


class Bound:
    """A server that answers."""

    def __init__(self, port: int, *, server: grpc.aio.Server, stopping: asyncio.Event, grace_seconds: float) -> None:
        self.port = port
        self.health = HealthServicer()
        self._server = server
        self._stopping = stopping
        self._grace_seconds = grace_seconds

    async def drain(self, *, seconds: float) -> None:
        """Health says NOT_SERVING at once, and for `seconds` all goes on, until those who send calls have heard of it.

        Then no call is taken any more, watches end, and what else runs gets the grace. A second time there is nothing left to do.
        """
        await self.health.enter_graceful_shutdown()
        await asyncio.sleep(seconds)
        stopped = asyncio.ensure_future(self._server.stop(self._grace_seconds))
        await asyncio.sleep(0)  # the server takes no call from here on: who watched finds another one
        self._stopping.set()
        await asyncio.shield(stopped)


@asynccontextmanager
async def serving(
    listen: str,
    services: Sequence[Service],
    *,
    authorize: Authorize,
    handlers: Sequence[grpc.GenericRpcHandler] = (),
    reflected: Sequence[str] = (),
    tls: Tls | None = None,
    meters: Meters = UNMEASURED,
    grace_seconds: float = 10.0,
    max_connection_age_seconds: float = MAX_CONNECTION_AGE_SECONDS,
) -> AsyncIterator[Bound]:
    """Serves until the block ends, and drains then without waiting; for a wait see `Bound.drain`.

    `listen` is `host:port`, port 0 draws one; `handlers` answer what no service does (the gateway's pass-through), `reflected` names their
    services for reflection. Raises OSError when the port is taken.
    """
    stopping = asyncio.Event()
    interceptor = CallInterceptor(authorize, meters=meters, stopping=stopping)
    age = ("grpc.max_connection_age_ms", round(1000 * max_connection_age_seconds))
    server = grpc.aio.server(interceptors=[interceptor], options=(*_OPTIONS, age))
    for service in services:
        service.add(service.servicer, server)
    if handlers:
        server.add_generic_rpc_handlers(tuple(handlers))
    names = [service.descriptor.full_name for service in services] + list(reflected)
    reflection.enable_server_reflection([*names, "grpc.health.v1.Health", reflection.SERVICE_NAME], server)
    try:
        port = server.add_secure_port(listen, tls.server_credentials()) if tls else server.add_insecure_port(listen)
    except RuntimeError as error:
        sentence = f"cannot listen on {listen}: it is in use, or not of this machine; give another by --listen, port 0 draws one"
        raise OSError(sentence) from error
    bound = Bound(port, server=server, stopping=stopping, grace_seconds=grace_seconds)
    health_pb2_grpc.add_HealthServicer_to_server(bound.health, server)
    await server.start()
    for name in ["", *names]:
        await bound.health.set(name, SERVING)
    try:
        yield bound
    finally:
        await bound.drain(seconds=0)


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
