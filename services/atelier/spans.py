"""Spans that OpenTelemetry's SDK keeps and sends to a collector (OTLP over gRPC); see `tracing`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from atelier.tracing import Kind, Span

KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}

_propagator = TraceContextTextMapPropagator()


class Recorded(Span):
    """See Span."""

    def __init__(self, inner: trace.Span) -> None:
        self.inner = inner

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """W3C's `traceparent`, and `tracestate` where there is one."""
        found: dict[str, str] = {}
        _propagator.inject(found, trace.set_span_in_context(self.inner))
        return tuple(found.items())

    def say(self, attributes: Mapping[str, str | int]) -> None:
        """See Span."""
        self.inner.set_attributes(attributes)

    def event(self, name: str) -> None:
        """See Span."""
        self.inner.add_event(name)

    def fail(self, reason: str) -> None:
        """See Span."""
        self.inner.set_status(Status(StatusCode.ERROR, reason))


class OpenTelemetry:
    """A `tracing.Recorder`. Spans that a collector does not take in time are dropped: who is traced never waits."""

    def __init__(self, component: str) -> None:
        named = os.environ.get("OTEL_SERVICE_NAME") or f"atelier-{component}"
        resource = Resource.create({SERVICE_NAME: named, SERVICE_VERSION: version("atelier")})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("atelier")

    def span(self, name: str, *, kind: Kind, parent: Span, metadata: Mapping[str, str]) -> Recorded:
        """See Recorder."""
        above = trace.set_span_in_context(parent.inner) if isinstance(parent, Recorded) else None
        context = _propagator.extract(metadata, above)
        return Recorded(self._tracer.start_span(name, context, KINDS[kind]))

    def end(self, span: Span) -> None:
        """See Recorder."""
        assert isinstance(span, Recorded)
        span.inner.end()

    def close(self) -> None:
        """See Recorder."""
        self._provider.shutdown()
