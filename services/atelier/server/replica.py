"""The Ray Serve application of a pool: one replica a node, any model. Imported light; torch comes with the first replica."""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from ray import serve

from atelier import telemetry, tracing
from atelier.errors import AtelierError, Status
from atelier.rpc.auth import Tokens
from atelier.rpc.status import abort_arguments
from atelier.server.replica_settings import ReplicaSettings
from atelier.v1 import image_pb2, replica_pb2

SAMPLE = "atelier.v1.Sampling/Sample"
STUCK_SECONDS = 300.0
"""A UNet call that takes longer has hung: the replica is replaced."""


@serve.deployment(name="Replica")
class Replica:
    """Answers `Sampling.Sample` behind Serve's proxy; see `Node` for what it holds."""

    def __init__(self, settings_path: str) -> None:
        from atelier.server.node import Node
        from atelier.server.step_meters import StepMeters

        settings = ReplicaSettings.read(Path(settings_path))
        # Into a file of the installation's where there is one: Ray's own log folder ends with Ray.
        telemetry.log_into(Path(settings.log) if settings.log else None, as_json=telemetry.wants_json(os.environ), logger="atelier")
        tracing.begin("replica", os.environ)
        self._tokens = Tokens(Path(settings.internal_token_file))
        self._node = Node(settings, token=self._tokens.all[0], replica=secrets.token_hex(4), on_tick=StepMeters().measure)

    async def Sample(self, request: replica_pb2.SampleRequest, grpc_context: Any) -> AsyncIterator[image_pb2.GenerateResponse]:
        """Makes pictures. Errors go as status and details: what is raised here would show its traceback to the client.

        Serve's proxy learns status and details with a message only, so an error sends one more, empty message.
        """
        metadata = {str(key): str(value) for key, value in grpc_context.invocation_metadata() or ()}
        telemetry.begin_call(f"/{SAMPLE}", metadata.get(telemetry.REQUEST_ID, ""))
        with tracing.span(SAMPLE, kind="server", metadata=metadata) as span:
            span.say(telemetry.about_call())
            try:
                self._admit(metadata)
                async with aclosing(self._pictures(request, span)) as responses:
                    async for response in responses:
                        yield response
            except AtelierError as error:
                span.fail(error.status.name)
                _set_error(grpc_context, error)
                yield image_pb2.GenerateResponse()
            except asyncio.CancelledError:
                raise
            except Exception:
                span.fail(Status.INTERNAL.name)
                self._node.logger.exception("a request failed")
                _set_error(grpc_context, AtelierError(Status.INTERNAL, "REPLICA_FAILED", "the replica failed; its log has the traceback"))
                yield image_pb2.GenerateResponse()

    def check_health(self) -> None:
        """Raises when the device hangs or is lost: Serve replaces the replica."""
        self._node.check_health(stuck_seconds=STUCK_SECONDS)

    async def _pictures(self, request: replica_pb2.SampleRequest, span: tracing.Span) -> AsyncGenerator[image_pb2.GenerateResponse]:
        engines = list(request.engines)
        variant = self._node.held(request.model, engines)
        if variant is None:
            with tracing.span("bring the model into memory"):
                variant = await asyncio.to_thread(self._node.variant, request.model, engines)
        loop = asyncio.get_running_loop()
        outbox = Outbox(loop)
        work = self._node.submit(request.request, variant, outbox, never_eager=request.never_eager)
        stepped = False
        try:
            while True:
                response = await outbox.next()
                if response is None:
                    return
                if not stepped or response.HasField("image"):
                    stepped = True
                    span.event("picture" if response.HasField("image") else "first step")
                yield response
        finally:
            work.cancelled.set()

    def _admit(self, metadata: Mapping[str, str]) -> None:
        """Raises UNAUTHENTICATED where the call may not be made."""
        given = metadata.get("authorization", "").encode()
        if not any([hmac.compare_digest(given, f"Bearer {token}".encode()) for token in self._tokens.all]):
            raise AtelierError(Status.UNAUTHENTICATED, "TOKEN_MISSING_OR_WRONG", "call the gateway, not Ray Serve's own port")


class Outbox:
    """From the loop's thread to the handler: the latest progress wins, pictures are never dropped, and the thread never waits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready = asyncio.Event()
        self._progress: image_pb2.GenerateProgress | None = None
        self._pictures: list[image_pb2.GeneratedImage] = []
        self._ended = False
        self._error: Exception | None = None

    def put(
        self,
        *,
        progress: image_pb2.GenerateProgress | None = None,
        picture: image_pb2.GeneratedImage | None = None,
        ended: bool = False,
        error: Exception | None = None,
    ) -> None:
        """From any thread."""

        def do() -> None:
            self._progress = progress or self._progress
            if picture is not None:
                self._pictures.append(picture)
            self._ended = self._ended or ended
            self._error = self._error or error
            self._ready.set()

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(do)

    async def next(self) -> image_pb2.GenerateResponse | None:
        """The next message; None at the end. Raises what went wrong."""
        while True:
            if self._progress is not None:
                progress, self._progress = self._progress, None
                return image_pb2.GenerateResponse(progress=progress)
            if self._pictures:
                return image_pb2.GenerateResponse(image=self._pictures.pop(0))
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._ready.clear()
            await self._ready.wait()


def build(args: dict[str, Any]) -> Any:
    """The application, for Serve's config: `args` names the settings file."""
    return Replica.bind(args["settings"])  # type: ignore[attr-defined]


def _set_error(grpc_context: Any, error: AtelierError) -> None:
    code, sentence, trailing = abort_arguments(error)
    grpc_context.set_code(code)
    grpc_context.set_details(sentence)
    grpc_context.set_trailing_metadata(list(trailing))
