"""A collector of traces, as OpenTelemetry's own: takes spans by OTLP over gRPC."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True, kw_only=True)
class Span:
    """What came of one."""

    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    failed: bool
    attributes: dict[str, Any]
    events: list[str]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps all spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.address = ""
        self._lock = threading.Lock()

    def Export(self, request: Any, context: Any) -> Any:
        """Keeps what is sent."""
        for resource in request.resource_spans:
            service = {one.key: one.value.string_value for one in resource.resource.attributes}["service.name"]
            with self._lock:
                self.spans += [_read(service, span) for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def environment(self) -> dict[str, str]:
        """For a process whose spans are to come here, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.address, "OTEL_BSP_SCHEDULE_DELAY": "100"}

    def of(self, trace: str, *, count: int, seconds: float = 20) -> list[Span]:
        """The spans of a trace, once there are so many."""
        end = time.monotonic() + seconds
        while len(found := [span for span in self.spans if span.trace == trace]) < count:
            assert time.monotonic() < end, found
            time.sleep(0.05)
        return found


@contextmanager
def collector() -> Iterator[Collector]:
    """On a port of loopback."""
    found = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)
    found.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield found
    server.stop(0)


def _read(service: str, span: Any) -> Span:
    return Span(
        service=service, name=span.name, kind=span.kind, trace=span.trace_id.hex(), id=span.span_id.hex(), parent=span.parent_span_id.hex(),
        failed=span.status.code == 2, events=[event.name for event in span.events],
        attributes={one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes},
    )  # fmt: skip
