"""What every call goes through, outermost first: its id, meters and log line, error translation, authentication, validation."""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, nullcontext
from typing import Any

import grpc
from google.protobuf.message import Message

from atelier import telemetry, tracing
from atelier.errors import AtelierError, Status, invalid
from atelier.meters import Meters
from atelier.rpc.status import abort_arguments
from atelier.rpc.stopping import until, wait_until
from atelier.rpc.validation import unknown_enum_values

logger = logging.getLogger("atelier.rpc")

Authorize = Callable[[str, Mapping[str, str]], None]
"""Takes the full method name and the call's metadata; raises AtelierError (UNAUTHENTICATED, PERMISSION_DENIED) to refuse."""

QUIET = ("/grpc.health.v1.Health/", "/atelier.v1.Attempts/Heartbeat", "/atelier.v1.Attempts/Append", "/atelier.v1.Replicas/Report")
"""Calls that come all the time: logged only when they fail, and never traced."""

OURS = ("UNKNOWN", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "DATA_LOSS")
"""Statuses that are a server's failures in a trace; the others are its clients'."""

ENDLESS = ("/atelier.v1.Jobs/WatchJob", "/grpc.health.v1.Health/Watch", "/grpc.reflection.")
"""Streams that may last for hours: a server that stops ends them, and who watches goes on elsewhere from where it was."""


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Wraps every handler of a server, the four kinds alike. `stopping` is set when running calls alone are waited for."""

    def __init__(self, authorize: Authorize, *, meters: Meters, stopping: asyncio.Event) -> None:
        self._authorize = authorize
        self._meters = meters
        self._stopping = stopping

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Puts the checks around the handler that answers `details.method`."""
        handler = await continuation(details)
        if handler is None:
            return None
        method = str(details.method)
        metadata = {str(key): value for key, value in details.invocation_metadata or () if isinstance(value, str)}
        stopping = self._stopping if method.startswith(ENDLESS) else None
        return _wrap(handler, lambda context: self._call(method, metadata, context), stopping)

    @asynccontextmanager
    async def _call(self, method: str, metadata: Mapping[str, str], context: Any) -> AsyncIterator[None]:
        named = ((telemetry.REQUEST_ID, telemetry.begin_call(method, metadata.get(telemetry.REQUEST_ID, ""))),)
        context.set_trailing_metadata(named)
        begin, code = time.monotonic(), "OK"
        error: AtelierError | None = None
        self._meters.call_began(method)
        with _traced(method, metadata) as span:
            try:
                self._authorize(method, metadata)
                yield
            except AtelierError as caught:
                error = caught
            except grpc.aio.AbortError:  # a handler that aborts by itself, as health and reflection do
                code = context.code().name
                raise
            except (asyncio.CancelledError, GeneratorExit):
                code = "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"
                raise
            except Exception as caught:
                error = _unexpected(method, caught)
            finally:
                code = error.status.name if error else code
                self._ended(method, code, time.monotonic() - begin)
                _say(span, method, code)
        if error is not None:
            status, sentence, trailing = abort_arguments(error)
            await context.abort(status, sentence, (*trailing, *named))

    def _ended(self, method: str, code: str, seconds: float) -> None:
        self._meters.call_ended(method, code=code, seconds=seconds)
        level = logging.DEBUG if method.startswith(QUIET) and code == "OK" else logging.INFO
        figures = {"code": code, "seconds": round(seconds, 4)}
        logger.log(level, "%s %s %.1f ms", method, code, 1000 * seconds, extra=figures)


def _traced(method: str, metadata: Mapping[str, str]) -> AbstractContextManager[tracing.Span]:
    if method.startswith(QUIET):
        return nullcontext(tracing.NOTHING)
    return tracing.span(method[1:], kind="server", metadata=metadata)


def _say(span: tracing.Span, method: str, code: str) -> None:
    service, _, name = method[1:].partition("/")
    span.say({"rpc.system": "grpc", "rpc.service": service, "rpc.method": name})
    span.say({"rpc.grpc.status_code": grpc.StatusCode[code].value[0], **telemetry.about_call()})
    if code in OURS:
        span.fail(code)


def _unexpected(method: str, error: Exception) -> AtelierError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        logger.error("%s failed: %s", method, error)
        return AtelierError(Status.RESOURCE_EXHAUSTED, "STORAGE_FULL", "the server's disk is full: make room there, then try again")
    logger.error("%s failed", method, exc_info=error)
    return AtelierError(Status.INTERNAL, "INTERNAL", f"internal error; the server's log has it as request {telemetry.request_id()}")


def _check(request: Any) -> None:
    violations = list(unknown_enum_values(request)) if isinstance(request, Message) else []
    if violations:
        raise invalid(violations, reason="UNKNOWN_ENUM_VALUE")
    telemetry.about_job(str(getattr(request, "job", "") or getattr(request, "name", "")))


async def _checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        _check(request)
        yield request


def _wrap(
    handler: grpc.RpcMethodHandler[Any, Any], call: Callable[[Any], Any], stopping: asyncio.Event | None
) -> grpc.RpcMethodHandler[Any, Any]:
    behavior: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

    def checked(request: Any) -> Any:
        if handler.request_streaming:
            return _checked(request)
        _check(request)
        return request

    async def single(request: Any, context: Any) -> Any:
        async with call(context):
            return await behavior(checked(request), context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        async with call(context):
            answer = behavior(checked(request), context)
            if inspect.isawaitable(answer):  # sends its messages by itself, as health's Watch does
                await (wait_until(stopping, answer) if stopping else answer)
                return
            # Closed here and not some time later: a client that is gone ends the work behind it at once.
            async with aclosing(until(stopping, answer) if stopping else answer) as responses:
                async for response in responses:
                    yield response

    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    wrapped: Any = stream if handler.response_streaming else single
    return make(wrapped, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer)
