"""What a replica holds on its device: step loop, models, engines; and its talk with the installation."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import grpc
import torch

from atelier.artifacts.manifest import Manifest
from atelier.artifacts.messages import files_from_messages, kind_from_enum, metadata_from_struct
from atelier.artifacts.signing import Verifier
from atelier.artifacts.store import Store
from atelier.client.artifacts import download
from atelier.engines.detect import detect
from atelier.engines.engine import Engine
from atelier.engines.engine import load as load_engine
from atelier.engines.manifest import EngineManifest
from atelier.errors import AtelierError, Status
from atelier.rpc.channel import channel
from atelier.rpc.status import from_call
from atelier.server.batching import Full, Request, StepLoop
from atelier.server.memory import free_memory_bytes
from atelier.server.messages import SAMPLER_WORDS, fingerprint_to_message
from atelier.server.passing_thread import in_passing_thread
from atelier.server.replica import Outbox
from atelier.server.replica_settings import ReplicaSettings
from atelier.server.weights import Variant, Variants
from atelier.v1 import artifact_pb2, artifact_pb2_grpc, image_pb2, replica_pb2, replica_pb2_grpc, server_pb2

ANSWER_SECONDS = 20.0
"""Within which the server answers a report."""
RETRY_SECONDS = 2.0


class Node:
    """One a process."""

    logger = logging.getLogger("atelier.replica")

    def __init__(self, settings: ReplicaSettings, *, replica: str) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._settings = settings
        self._replica = replica
        self._fingerprint = detect()
        self._device = self._fingerprint.device
        self._channel = channel(settings.internal_target, token=settings.internal_token)
        self._artifacts = artifact_pb2_grpc.ArtifactsStub(self._channel)
        self._reports = replica_pb2_grpc.ReplicasStub(self._channel)
        self._store = Store.open(settings.store_url) if settings.store_url else None
        self._verifier = Verifier.load(Path(settings.public_key))
        self._engines: dict[str, Engine] = {}
        self._errors: dict[str, str] = {}
        self._known: dict[str, replica_pb2.ReplicaModel] = {}
        self._fetching = threading.Lock()
        self._woken = threading.Event()
        self._loop = StepLoop(device=self._device, max_waiting=settings.max_waiting)
        self._loop.start()
        self._variants = Variants(quiet_seconds=self._loop.quiet_seconds, max_models=settings.max_models, device=self._device)
        threading.Thread(target=self._report_for_ever, name="report", daemon=True).start()

    def variant(self, model: str, engines: Sequence[str]) -> Variant:
        """The model, loaded if it is not, with the first engine that can be used. Raises AtelierError."""
        digest = model.removeprefix("artifacts/")
        held = self._variants.get(digest)
        if held is not None and (not engines or _engine_of(held) in engines):
            return held
        return in_passing_thread(partial(self._load, digest, engines))

    def _load(self, digest: str, engines: Sequence[str]) -> Variant:
        try:
            variant = self._variants.load(digest, lambda: self._fetch(digest)[0])
        except ValueError as error:
            raise AtelierError(Status.FAILED_PRECONDITION, "MODEL_NOT_USABLE", f"artifacts/{digest} cannot be served: {error}") from error
        self._attach(variant, engines)
        return variant

    def submit(self, request: image_pb2.GenerateRequest, variant: Variant, outbox: Outbox) -> Request:
        """Puts a request into the loop; its messages come out of `outbox`. Raises RESOURCE_EXHAUSTED when too many wait."""
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
        """Raises RuntimeError when a tick hangs or the device is lost."""
        if self._loop.failed.is_set():
            raise RuntimeError("the device has failed")
        if self._loop.overdue_seconds() > stuck_seconds:
            raise RuntimeError("a UNet call hangs")

    def _attach(self, variant: Variant, engines: Sequence[str]) -> None:
        for name in engines:
            digest = name.removeprefix("artifacts/")
            if variant.compiled is not None and variant.compiled.digest == digest:
                return
            try:
                self._variants.attach(variant, digest, self._engine(digest), changed=self._change)
                return
            except (AtelierError, ValueError) as error:
                self._errors[digest] = str(error)
                self.logger.warning("engine %s is not used: %s", digest, error)

    def _engine(self, digest: str) -> Engine:
        with self._fetching:
            if digest not in self._engines:
                folder, record = self._fetch(digest)
                self._verifier.check(digest, record.signature)
                manifest = EngineManifest.from_metadata(metadata_from_struct(record.metadata))  # type: ignore[arg-type]
                self._engines[digest] = load_engine(
                    folder, manifest=manifest, fingerprint=self._fingerprint, device=self._device, num_threads=self._settings.threads
                )
            return self._engines[digest]

    def _fetch(self, digest: str) -> tuple[Path, artifact_pb2.Artifact]:
        try:
            record = self._artifacts.GetArtifact(artifact_pb2.GetArtifactRequest(name=f"artifacts/{digest}"))
        except grpc.RpcError as error:
            raise from_call(error) from error
        folder = Path(self._settings.cache) / digest
        if folder.exists():
            return folder, record
        part = folder.with_name(f".{digest}.{self._replica}")
        shutil.rmtree(part, ignore_errors=True)
        kind = kind_from_enum(record.kind)
        assert kind is not None
        if self._store is not None:
            self._store.materialize(Manifest(kind=kind, files=files_from_messages(record.files)), part)
        else:
            download(self._artifacts, record.name, part)
        part.rename(folder)
        return folder, record

    def _change(self) -> None:
        self._woken.set()

    def _report_for_ever(self) -> None:
        """The server answers a report when it wants something new; what has changed here meanwhile is reported at once."""
        seen = ""
        while True:
            woken = self._woken = threading.Event()
            call = self._reports.Report.future(self._report(seen), timeout=ANSWER_SECONDS)
            call.add_done_callback(partial(_wake, woken))
            woken.wait()
            if not call.done():
                call.cancel()
                continue
            try:
                answer = call.result()
                self._prepare(answer.models)
                seen = answer.etag
            except grpc.RpcError as error:
                self.logger.warning("cannot report: %s", error.code())
                time.sleep(RETRY_SECONDS)
            except Exception:
                self.logger.exception("preparing a model failed")
                time.sleep(RETRY_SECONDS)

    def _prepare(self, wanted: Sequence[replica_pb2.WantedModel]) -> None:
        """Loads what has not been loaded before. What has left for others since then comes back with the first call for it."""
        for model in wanted:
            digest = model.model.removeprefix("artifacts/")
            variant = self._variants.get(digest, use=False)
            known = self._known.get(model.model)
            current = known.engine_artifact if variant is None and known else _engine_of(variant)
            if digest in self._errors or (known and (not model.engines or current in model.engines)):
                continue
            try:
                self._known[model.model] = _held(self.variant(model.model, list(model.engines)))
            except AtelierError as error:
                if error.status is Status.UNAVAILABLE:
                    raise
                self._errors[digest] = error.message
            self._change()
        names = {model.model for model in wanted}
        self._known = {name: known for name, known in self._known.items() if name in names}

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


def _wake(event: threading.Event, _: object) -> None:
    event.set()


def _held(variant: Variant) -> replica_pb2.ReplicaModel:
    compiled = variant.compiled
    engine = server_pb2.DEPLOYMENT_ENGINE_EAGER
    if compiled is not None:
        engine = server_pb2.DEPLOYMENT_ENGINE_BOUND if compiled.bound else server_pb2.DEPLOYMENT_ENGINE_COMPILED
    return replica_pb2.ReplicaModel(model=f"artifacts/{variant.name}", engine=engine, engine_artifact=_engine_of(variant))


def _engine_of(variant: Variant | None) -> str:
    return f"artifacts/{variant.compiled.digest}" if variant and variant.compiled else ""
