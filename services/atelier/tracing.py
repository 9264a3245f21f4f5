"""Traces of calls, from the client's own through the gateway into the replica; none unless the environment names a collector.

What records is in `spans`; who is traced knows nothing of it. No prompt, picture or token is ever shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, Protocol

from atelier.errors import failed_precondition

COLLECTORS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Variables of the environment that name one; OpenTelemetry's SDK reads these and all its others by itself."""

Kind = Literal["server", "client", "internal"]


class Span:
    """A stretch of work. This one records nothing."""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call has to carry so that its spans come below this one."""
        return ()

    def say(self, attributes: Mapping[str, str | int]) -> None:
        """Sets attributes, such as `rpc.method`."""

    def event(self, name: str) -> None:
        """Something happened now."""

    def fail(self, reason: str) -> None:
        """It went wrong, in a word such as a status."""


class Recorder(Protocol):
    """What spans are kept by."""

    def span(self, name: str, *, kind: Kind, parent: Span, metadata: Mapping[str, str]) -> Span:
        """Begins one, below the caller's that `metadata` names, or below `parent`."""

    def end(self, span: Span) -> None:
        """Ends one."""

    def close(self) -> None:
        """Sends what is left."""


NOTHING = Span()
_current: ContextVar[Span] = ContextVar("span", default=NOTHING)
_recorder: Recorder | None = None


def begin(component: str, environment: Mapping[str, str]) -> Callable[[], None]:
    """Traces this process, called `atelier-{component}`, where the environment names a collector; gives what sends the rest and ends it.

    Raises FAILED_PRECONDITION where the extra `tracing` is not installed.
    """
    global _recorder
    if not any(environment.get(name) for name in COLLECTORS):
        return lambda: None
    try:
        from atelier.spans import OpenTelemetry
    except ModuleNotFoundError as error:
        sentence = f"{COLLECTORS[0]} needs OpenTelemetry's SDK: pip install 'atelier[tracing]'"
        raise failed_precondition("TRACING_NOT_INSTALLED", sentence) from error
    _recorder = recorder = OpenTelemetry(component)

    def end() -> None:
        global _recorder
        _recorder = None
        recorder.close()

    return end


@contextmanager
def span(name: str, *, kind: Kind = "internal", metadata: Mapping[str, str] | None = None) -> Iterator[Span]:
    """A span for as long as the block lasts, below the one that this task is in, or below the caller's that a call's `metadata` names."""
    recorder = _recorder
    if recorder is None:
        yield NOTHING
        return
    before = _current.get()
    found = recorder.span(name, kind=kind, parent=before, metadata=metadata or {})
    _current.set(found)
    try:
        yield found
    finally:
        _current.set(before)  # and no reset: a stream that is given up ends in another context
        recorder.end(found)
