"""The Images service: checks, completes and bounds requests, and passes them to the replicas behind Serve's gRPC proxy."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from atelier import telemetry, tracing
from atelier.errors import AtelierError, Status, Violation, invalid, not_found, unavailable
from atelier.meters import UNMEASURED, Meters
from atelier.rpc.channel import bearer
from atelier.rpc.status import DETAILS, from_call
from atelier.server.deployments import Deployment, DeploymentLedger
from atelier.server.messages import SAMPLER_WORDS, engine_word
from atelier.server.pool import Pools
from atelier.server.pool import Status as Standing
from atelier.server.proxies import Proxies, Proxy
from atelier.v1 import image_pb2, image_pb2_grpc, replica_pb2, server_pb2

DEFAULT_STEPS, DEFAULT_GUIDANCE = 20, 5.0
MAX_SIDE, MAX_PROMPT, MAX_GUIDANCE = 2048, 4000, 50.0
MULTIPLE = 64
MAX_PIXELS = 1024 * 1344
"""Of a picture: as PNG it then fits into a message of 4 MiB, gRPC's default, whatever it shows."""
MAX_SECONDS = 600.0
"""Deadline of a call that brings none."""
SAMPLE = "atelier.v1.Sampling/Sample"
UNKNOWN_TO_PROXY = "POOL_NOT_READY"
"""A proxy that has just begun may not know of an application yet that others know."""

logger = logging.getLogger("atelier.server")


class ImagesServicer(image_pb2_grpc.ImagesServicer):
    """`proxies` lead to the replicas; `max_in_work` bounds the requests of this process."""

    def __init__(
        self,
        *,
        deployments: DeploymentLedger,
        pools: Pools,
        proxies: Proxies,
        internal_token: str,
        max_in_work: int = 64,
        meters: Meters = UNMEASURED,
    ) -> None:
        self._deployments = deployments
        self._pools = pools
        self._proxies = proxies
        self._internal_token = internal_token
        self._max_in_work = max_in_work
        self._meters = meters
        self._in_work = 0

    async def Generate(self, request: image_pb2.GenerateRequest, context: Any) -> AsyncIterator[image_pb2.GenerateResponse]:  # type: ignore[override]
        """Makes pictures."""
        if self._in_work >= self._max_in_work:
            sentence = f"{self._in_work} requests are in work: try again later"
            raise AtelierError(Status.RESOURCE_EXHAUSTED, "OVERLOADED", sentence, retry_after_seconds=2.0)
        self._in_work += 1
        begin, stepped = time.monotonic(), False
        try:
            deployment, sample = await asyncio.to_thread(self._prepare, request)
            async with aclosing(self._sample(deployment, sample, context)) as responses:
                async for response in responses:
                    if response.HasField("image"):
                        self._meters.picture_made(deployment.pool, engine=engine_word(response.image.engine))
                    elif not stepped:
                        stepped = True
                        self._meters.first_step(deployment.pool, seconds=time.monotonic() - begin)
                    yield response
            self._meters.generated(deployment.pool, seconds=time.monotonic() - begin)
        finally:
            self._in_work -= 1

    async def _sample(
        self, deployment: Deployment, sample: replica_pb2.SampleRequest, context: Any
    ) -> AsyncGenerator[image_pb2.GenerateResponse]:
        """Passes the call on; once more when a replica or proxy was lost before a picture was sent."""
        remaining = context.time_remaining()
        end = time.monotonic() + (MAX_SECONDS if remaining is None else remaining)
        metadata = (
            *bearer(self._internal_token),
            ("application", deployment.pool),
            ("multiplexed_model_id", deployment.model),
            # Under the same id in the replica's log, and in Serve's own.
            (telemetry.REQUEST_ID, telemetry.request_id()),
            ("request_id", telemetry.request_id()),
        )
        proxy: Proxy | None = None
        for attempt in (1, 2):
            pictures, proxy = 0, await self._proxy(other_than=proxy)
            with self._proxies.calling(proxy) as sampling, tracing.span(SAMPLE, kind="client") as span:
                span.say({"atelier.pool": deployment.pool, "atelier.deployment": deployment.name, "atelier.attempt": attempt})
                call = sampling.Sample(sample, metadata=(*metadata, *span.metadata), timeout=end - time.monotonic())
                try:
                    async for response in call:
                        pictures += response.WhichOneof("part") == "image"
                        if response.WhichOneof("part"):  # an empty message comes before an error, see Replica.Sample
                            yield response
                    if pictures == sample.request.count:
                        return
                except grpc.aio.AioRpcError as error:
                    span.fail(error.code().name)
                    found = _translate(error)
                    if found is not None and (attempt == 2 or found.reason != UNKNOWN_TO_PROXY):
                        raise found from None
                finally:
                    call.cancel()
            self._meters.replica_lost(deployment.pool)
            if pictures or attempt == 2:
                raise unavailable("REPLICA_LOST", "the replica was lost: try again", retry_after_seconds=1.0)

    async def _proxy(self, *, other_than: Proxy | None) -> Proxy:
        try:
            return await self._proxies.choose(other_than=other_than)
        except OSError as error:
            logger.warning("there is no proxy of Serve's: %s", error)
            raise unavailable(UNKNOWN_TO_PROXY, "no replica can be reached now: try again", retry_after_seconds=2.0) from None

    def _prepare(self, request: image_pb2.GenerateRequest) -> tuple[Deployment, replica_pb2.SampleRequest]:
        deployment = self._deployment(request.deployment)
        complete = image_pb2.GenerateRequest()
        complete.CopyFrom(request)
        complete.deployment = deployment.name
        complete.steps, complete.count = request.steps or DEFAULT_STEPS, request.count or 1
        complete.sampler = request.sampler or image_pb2.SAMPLER_EULER
        complete.guidance_scale = request.guidance_scale if request.HasField("guidance_scale") else DEFAULT_GUIDANCE
        complete.seed = request.seed if request.HasField("seed") else secrets.randbits(32)
        violations = check(complete, deployment)
        if violations:
            raise invalid(violations)
        status = self._check_ready(deployment)
        width, height = self._pools.size(deployment.model)
        complete.width, complete.height = request.width or width, request.height or height
        if large := too_large(complete):
            raise invalid(large)
        engines = [status.engine_artifact] if status.engine_artifact else []
        if status.waits:
            engines = self._pools.engines_there(deployment)
        model, never_eager = f"artifacts/{deployment.model}", not deployment.serve_eager
        return deployment, replica_pb2.SampleRequest(request=complete, model=model, engines=engines, never_eager=never_eager)

    def _check_ready(self, deployment: Deployment) -> Standing:
        status = self._pools.status(deployment)
        if status.state == server_pb2.DEPLOYMENT_STATE_FAILED:
            raise AtelierError(Status.FAILED_PRECONDITION, "DEPLOYMENT_FAILED", f"{deployment.name} cannot answer: {status.message}")
        if status.state != server_pb2.DEPLOYMENT_STATE_READY and not status.waits:
            sentence = f"{deployment.name} is not ready: {status.message}"
            raise unavailable("DEPLOYMENT_NOT_READY", sentence, retry_after_seconds=1.0)
        return status

    def _deployment(self, name: str) -> Deployment:
        if name:
            return self._deployments.get(name if name.startswith("deployments/") else f"deployments/{name}")
        found = self._deployments.all()
        if len(found) == 1:
            return found[0]
        if not found:
            raise not_found("deployment", "", hint="make one: `atelier deploy MODEL --name NAME`")
        names = ", ".join(deployment.name for deployment in found)
        raise invalid([Violation("deployment", f"must be set where there is not exactly one; there are: {names}")])


def check(request: image_pb2.GenerateRequest, deployment: Deployment) -> list[Violation]:
    """Everything that is wrong with a request, at once; a size that is 0 is the model's own."""
    found = []
    for name in ("width", "height"):
        value = getattr(request, name)
        if value and (value % MULTIPLE or not MULTIPLE <= value <= MAX_SIDE):
            found.append(Violation(name, f"must be a multiple of {MULTIPLE} between {MULTIPLE} and {MAX_SIDE}, got {value}"))
    found += too_large(request)
    for name, most in (("steps", deployment.max_steps), ("count", deployment.max_count)):
        value = getattr(request, name)
        if not 1 <= value <= most:
            found.append(Violation(name, f"must be between 1 and {most}, got {value}"))
    if not math.isfinite(request.guidance_scale) or not 0 <= request.guidance_scale <= MAX_GUIDANCE:
        found.append(Violation("guidance_scale", f"must be between 0 and {MAX_GUIDANCE:g}, got {request.guidance_scale}"))
    for name in ("prompt", "negative_prompt"):
        if len(getattr(request, name)) > MAX_PROMPT:
            found.append(Violation(name, f"at most {MAX_PROMPT} characters, got {len(getattr(request, name))}"))
    if not 0 <= request.preview_steps <= 1000:
        found.append(Violation("preview_steps", f"must be between 0 and 1000, got {request.preview_steps}"))
    if request.sampler not in SAMPLER_WORDS:
        found.append(Violation("sampler", f"must be one of {', '.join(SAMPLER_WORDS.values())}"))
    return found


def too_large(request: image_pb2.GenerateRequest) -> list[Violation]:
    """What is wrong with the two sides together."""
    if request.width * request.height <= MAX_PIXELS:
        return []
    return [Violation("width", f"times height must be at most {MAX_PIXELS} pixels, got {request.width} x {request.height}")]


def _translate(error: grpc.aio.AioRpcError) -> AtelierError | None:
    """The error for the client; None where a replica or proxy was lost, so that the call may be made once more."""
    code = error.code()
    ours = any(key == DETAILS for key, _ in error.trailing_metadata() or ())
    if ours:
        return from_call(error)
    # CANCELLED: not by this side, so by a proxy or replica that stops.
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED):
        return None
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        sentence = "all replicas are busy: try again later"
        return AtelierError(Status.RESOURCE_EXHAUSTED, "OVERLOADED", sentence, retry_after_seconds=2.0)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return AtelierError(Status.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the pictures were not ready before the call's deadline")
    if code is grpc.StatusCode.NOT_FOUND:
        return unavailable(UNKNOWN_TO_PROXY, "the pool's application is not in place yet", retry_after_seconds=2.0)
    return AtelierError(Status.INTERNAL, "REPLICA_FAILED", "the replica failed; its log has the reason")
