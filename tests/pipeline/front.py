"""What a Service is to its pods: one address, whose new connections go to a process that says it serves; old ones stay where they are."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


@contextmanager
def front(backends: Mapping[int, int]) -> Iterator[int]:
    """`backends`: port -> the port of its probes; the first that serves is taken. Gives the port."""
    ended = threading.Event()
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listening.settimeout(0.1)
        thread = threading.Thread(target=_accept, args=(listening, backends, stack, ended))
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            ended.set()
            thread.join()


def _accept(listening: socket.socket, backends: Mapping[int, int], stack: ExitStack, ended: threading.Event) -> None:
    while not ended.is_set():
        with suppress(TimeoutError):
            client = stack.enter_context(listening.accept()[0])
            client.settimeout(None)
            port = next((port for port, probe in backends.items() if health(probe) == "SERVING"), None)
            if port is None:
                client.close()
                continue
            backend = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            for one, other in ((client, backend), (backend, client)):
                threading.Thread(target=_pass, args=(one, other), daemon=True).start()


def _pass(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while content := one.recv(1 << 16):
            other.sendall(content)
    with suppress(OSError):
        other.shutdown(socket.SHUT_WR)


def health(port: int) -> str:
    """What a process says of itself; empty where nobody answers."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, suppress(grpc.RpcError):
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return ""
