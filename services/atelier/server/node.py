"""What a replica holds on its device: step loop, models, engines; and its talk with the installation."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from atelier.artifacts.messages import metadata_from_struct
from atelier.artifacts.signing import Verifier
from atelier.artifacts.store import Store
from atelier.engines.detect import detect
from atelier.engines.engine import Engine
from atelier.engines.engine import load as load_engine
from atelier.engines.fingerprint import Fingerprint, is_of
from atelier.engines.manifest import EngineManifest
from atelier.errors import AtelierError, Status, failed_precondition, unavailable
from atelier.rpc.channel import channel
from atelier.rpc.tls import Tls
from atelier.server.batching import Full, Request, StepLoop, Tick
from atelier.server.cache import Cache
from atelier.server.memory import free_memory_bytes
from atelier.server.messages import SAMPLER_WORDS, fingerprint_to_message
from atelier.server.passing_thread import in_passing_thread
from atelier.server.replica import Outbox
from atelier.server.replica_settings import ReplicaSettings
from atelier.server.reporting import Reporting
from atelier.server.weights import Variant, Variants
from atelier.v1 import artifact_pb2_grpc, image_pb2, replica_pb2, replica_pb2_grpc, server_pb2

AGAIN_SECONDS = 30.0
"""After an error that nobody foresaw, such as a full disk."""


class Node:
    """One a process."""

    logger = logging.getLogger("atelier.replica")

    def __init__(self, settings: ReplicaSettings, *, token: str, replica: str, on_tick: Callable[[Tick], None] = lambda tick: None) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._settings = settings
        self._replica = replica
        self._fingerprint = _detect(settings)
        self._device = self._fingerprint.device
        tls = Tls.of_environment(settings.tls)
        credentials = tls.channel_credentials() if tls else None
        self._channel = channel(settings.internal_target, token=token, credentials=credentials)
        self._cache = Cache(
            Path(settings.cache), artifacts=artifact_pb2_grpc.ArtifactsStub(self._channel), replica=replica,
            store=Store.open(settings.store_url) if settings.store_url else None,
        )  # fmt: skip
        self._cache.tidy()
        self._verifier = Verifier.load(Path(settings.public_key))
        self._engines: dict[str, Engine] = {}
        self._errors: dict[str, str] = {}
        self._forget_at: dict[str, float] = {}
        self._known: dict[str, replica_pb2.ReplicaModel] = {}
        self._attaching = threading.Lock()
        self._loop = StepLoop(device=self._device, max_waiting=settings.max_waiting, on_lost=_end_process, on_tick=on_tick)
        self._loop.start()
        self._variants = Variants(quiet_seconds=self._loop.quiet_seconds, max_models=settings.max_models, device=self._device)
        self._reporting = Reporting(replica_pb2_grpc.ReplicasStub(self._channel), report=self._report, prepare=self._prepare)
        self._reporting.start()

    def stop(self) -> None:
        """Ends its threads."""
        self._reporting.stop()
        self._loop.stop()
        self._channel.close()

    def held(self, model: str, engines: Sequence[str]) -> Variant | None:
        """The model, where it is loaded with one of the engines."""
        held = self._variants.get(model.removeprefix("artifacts/"))
        return held if held is not None and (not engines or _engine_of(held) in engines) else None

    def variant(self, model: str, engines: Sequence[str]) -> Variant:
        """The model, loaded if it is not, with the first engine that can be used. Takes as long as that. Raises AtelierError."""
        return self.held(model, engines) or in_passing_thread(partial(self._load, model.removeprefix("artifacts/"), engines))

    def _load(self, digest: str, engines: Sequence[str]) -> Variant:
        try:
            variant = self._variants.load(digest, lambda: self._cache.fetch(digest)[0])
        except ValueError as error:
            raise AtelierError(Status.FAILED_PRECONDITION, "MODEL_NOT_USABLE", f"artifacts/{digest} cannot be served: {error}") from error
        with self._attaching:
            self._attach(variant, engines)
        return variant

    def submit(self, request: image_pb2.GenerateRequest, variant: Variant, outbox: Outbox, *, never_eager: bool = False) -> Request:
        """Puts a request into the loop; its messages come out of `outbox`. Raises RESOURCE_EXHAUSTED when too many wait, UNAVAILABLE for
        `never_eager` where no engine is attached."""
        if never_eager and variant.compiled is None:
            sentence = "no engine runs on this replica, and its deployment is never served eager: wait for one"
            raise unavailable("ENGINE_NOT_READY", sentence, retry_after_seconds=2.0)
        seed = request.seed

        def picture(index: int, png: bytes, engine: str) -> None:
            outbox.put(
                picture=image_pb2.GeneratedImage(
                    index=index, seed=(seed + index) % 2**32, png=png, width=request.width, height=request.height,
                    model=f"artifacts/{variant.name}", engine=engine,
                )
            )  # fmt: skip

        def progress(step: int, total: int, previews: list[bytes]) -> None:
            outbox.put(progress=image_pb2.GenerateProgress(step=step, total_steps=total, previews=previews))

        work = Request(
            weights=variant, prompt=request.prompt, negative_prompt=request.negative_prompt, width=request.width, height=request.height,
            num_steps=request.steps, guidance_scale=request.guidance_scale, sampler=SAMPLER_WORDS[request.sampler], seed=seed,
            count=request.count, preview_steps=request.preview_steps, on_progress=progress, on_picture=picture,
            on_end=lambda error: outbox.put(ended=True, error=error),
        )  # fmt: skip
        try:
            self._loop.submit(work)
        except Full:
            sentence = "all replicas are busy: try again later"
            raise AtelierError(Status.RESOURCE_EXHAUSTED, "OVERLOADED", sentence, retry_after_seconds=2.0) from None
        return work

    def check_health(self, *, stuck_seconds: float) -> None:
        """Raises RuntimeError when a tick hangs, or nothing works on requests any more."""
        if not self._loop.running:
            raise RuntimeError("the step loop has ended")
        if self._loop.overdue_seconds() > stuck_seconds:
            raise RuntimeError("a UNet call hangs")

    def _attach(self, variant: Variant, engines: Sequence[str]) -> None:
        for digest in (name.removeprefix("artifacts/") for name in engines):
            if variant.compiled is not None and variant.compiled.digest == digest:
                return
            if digest in self._errors:
                continue
            try:
                self._variants.attach(variant, digest, self._engine(digest), changed=self._reporting.change)
                return
            except (AtelierError, ValueError) as error:
                if isinstance(error, AtelierError) and error.status is Status.UNAVAILABLE:
                    raise
                self._errors[digest] = str(error)
                self.logger.warning("engine %s is not used: %s", digest, error)

    def _engine(self, digest: str) -> Engine:
        if digest not in self._engines:
            folder, record = self._cache.fetch(digest)
            self._verifier.check(digest, record.signature)
            manifest = EngineManifest.from_metadata(metadata_from_struct(record.metadata))  # type: ignore[arg-type]
            self._engines[digest] = load_engine(
                folder, manifest=manifest, fingerprint=self._fingerprint, device=self._device, num_threads=self._settings.threads
            )
        return self._engines[digest]

    def _prepare(self, wanted: Sequence[replica_pb2.WantedModel]) -> bool:
        """Loads what has not been loaded before; what has left for others since then comes back with the first call for it. Lets go of what
        is no longer wanted. False when something may be ready at another try."""
        names = {model.model for model in wanted}
        engines = {engine for model in wanted for engine in model.engines}
        now = time.monotonic()
        self._errors = {
            digest: error for digest, error in self._errors.items()
            if f"artifacts/{digest}" in names | engines and now < self._forget_at.get(digest, math.inf)
        }  # fmt: skip
        ready = [self._prepare_one(model) for model in wanted]
        self._known = {name: known for name, known in self._known.items() if name in names}
        self._variants.keep({name.removeprefix("artifacts/") for name in names})
        with self._attaching:
            self._engines = {digest: engine for digest, engine in self._engines.items() if f"artifacts/{digest}" in engines}
        return all(ready)

    def _prepare_one(self, model: replica_pb2.WantedModel) -> bool:
        digest = model.model.removeprefix("artifacts/")
        variant = self._variants.get(digest, use=False)
        known = self._known.get(model.model)
        current = known.engine_artifact if variant is None and known else _engine_of(variant)
        untried = [engine for engine in model.engines if engine.removeprefix("artifacts/") not in self._errors]
        if digest in self._errors or (known and (not untried or current in untried)):
            return True
        try:
            self._known[model.model] = _held(self.variant(model.model, untried))
        except AtelierError as error:
            if error.status is Status.UNAVAILABLE:
                self.logger.warning("%s is not ready: %s", model.model, error)
                return False
            self._errors[digest] = error.message
        except Exception:
            self.logger.exception("%s could not be loaded", model.model)
            self._errors[digest] = "the replica could not load it; its log has the reason"
            self._forget_at[digest] = time.monotonic() + AGAIN_SECONDS
        self._reporting.change()
        return True

    def _report(self, seen: str) -> replica_pb2.ReportRequest:
        failed = {f"artifacts/{digest}": error for digest, error in self._errors.items()}
        models = {name: replica_pb2.ReplicaModel(model=name, error=error) for name, error in failed.items()} | self._known
        models |= {held.model: held for held in map(_held, self._variants.held())}
        return replica_pb2.ReportRequest(
            pool=f"pools/{self._settings.pool}",
            replica=self._replica,
            fingerprint=fingerprint_to_message(self._fingerprint),
            models=list(models.values()),
            free_memory_bytes=free_memory_bytes(self._device),
            error=next(iter(self._errors.values()), ""),
            seen_etag=seen,
        )


def _detect(settings: ReplicaSettings) -> Fingerprint:
    """What this machine is. Raises FAILED_PRECONDITION where that is not what the pool's label says."""
    found = detect()
    if not is_of(settings.gpu, found.label):
        sentence = f"pools/{settings.pool} is for {settings.gpu}, and this node has {found.label}: its labels are wrong"
        raise failed_precondition("GPU_MISMATCH", sentence, wanted=settings.gpu, found=found.label)
    return found


def _end_process() -> None:
    """The device has failed for good: Serve starts another replica, and the gateway makes its calls once more there."""
    logging.getLogger("atelier.replica").critical("the device has failed; the process ends")
    os._exit(1)


def _held(variant: Variant) -> replica_pb2.ReplicaModel:
    compiled = variant.compiled
    engine = server_pb2.DEPLOYMENT_ENGINE_EAGER
    if compiled is not None:
        engine = server_pb2.DEPLOYMENT_ENGINE_BOUND if compiled.bound else server_pb2.DEPLOYMENT_ENGINE_COMPILED
    return replica_pb2.ReplicaModel(model=f"artifacts/{variant.name}", engine=engine, engine_artifact=_engine_of(variant))


def _engine_of(variant: Variant | None) -> str:
    return f"artifacts/{variant.compiled.digest}" if variant and variant.compiled else ""
