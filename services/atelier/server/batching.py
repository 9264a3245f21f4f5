"""The step loop: one thread owns the device; each tick is one UNet call for pictures of any request that share weights and size."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from atelier.server.rows import Costs, batch_of, fill, predict
from atelier.server.samplers import PictureSampler

logger = logging.getLogger("atelier.replica")

FAIR_TICK = 4
"""Every so manieth tick serves who was not served for longest, so that a long request holds nobody up for ever."""


class Weights(Protocol):
    """A model's weights on the device, as the loop uses them. All calls come from the loop's thread."""

    name: str
    scheduler_config: Any
    latent_channels: int
    vae_scale_factor: int

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings [n, 77, D]."""

    def runner(self, width: int, height: int) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], tuple[int, ...], str]:
        """What computes a forward now for this picture size, the batches it takes (none: any), and how to call it: `eager`, ..."""

    def decode(self, latents: Tensor) -> list[bytes]:
        """Latents [n, C, h, w] as PNG pictures."""

    def preview(self, latents: Tensor) -> bytes:
        """Latents [1, C, h, w] as a small PNG picture."""


@dataclass(eq=False, kw_only=True)
class Request:
    """A request in the loop. `on_*` are called from the loop's thread and must not block."""

    weights: Weights
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_steps: int
    guidance_scale: float
    sampler: str
    seed: int
    count: int
    preview_steps: int
    on_progress: Callable[[int, int, list[bytes]], None]
    on_picture: Callable[[int, bytes, str], None]
    on_end: Callable[[Exception | None], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    pictures: list[Picture] = field(default_factory=list)
    guided: Tensor | None = None
    """Embeddings [2, 77, D], empty prompt first; without guidance [1, 77, D]."""

    @property
    def rows(self) -> int:
        """Rows of the UNet call that each picture takes."""
        return 2 if self.guidance_scale > 1 else 1


@dataclass(eq=False, kw_only=True)
class Picture:
    """A picture of a request."""

    request: Request
    index: int
    sampler: PictureSampler
    served: int = 0
    """Number of its last tick."""

    @property
    def group(self) -> tuple[str, int, int]:
        """What it must share with those that go with it."""
        return self.request.weights.name, self.request.width, self.request.height


class Full(Exception):
    """The inbox is full."""


class StepLoop:
    """Start it once; `submit` from any thread. `max_waiting` bounds the inbox, `max_live` the pictures in work."""

    def __init__(self, *, device: str = "cpu", max_waiting: int = 64, max_live: int = 64) -> None:
        self._device = device
        self._inbox: queue.Queue[Request | None] = queue.Queue(max_waiting)
        self._max_live = max_live
        self._live: list[Picture] = []
        self._costs = Costs()
        self._ticks = 0
        self._tick_began: float | None = None
        self._worked = time.monotonic()
        self.failed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="step-loop", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the tick."""
        self._inbox.put(None)
        self._thread.join(timeout=30)

    def submit(self, request: Request) -> None:
        """Puts a request in. Raises Full."""
        try:
            self._inbox.put_nowait(request)
        except queue.Full:
            raise Full from None

    def quiet_seconds(self) -> float:
        """How long there has been nothing to do."""
        return 0.0 if self._live else time.monotonic() - self._worked

    def overdue_seconds(self) -> float:
        """How long the running tick has lasted; 0 when none is running."""
        began = self._tick_began
        return time.monotonic() - began if began is not None else 0.0

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                if not self._admit():
                    return
                self._tick_began = time.monotonic()
                self._drop_cancelled()
                if self._live:
                    self._tick(self._choose())
                self._worked = time.monotonic()
                self._tick_began = None

    def _admit(self) -> bool:
        """Takes what waits; sleeps only when there is nothing to do."""
        while len(self._live) < self._max_live:
            try:
                request = self._inbox.get(block=not self._live, timeout=None)
            except queue.Empty:
                return True
            if request is None:
                return False
            if request.cancelled.is_set():
                request.on_end(None)
                continue
            try:
                self._begin(request)
            except Exception as error:
                self._fail([request], error)
        return True

    def _begin(self, request: Request) -> None:
        weights = request.weights
        prompts = [request.negative_prompt, request.prompt] if request.rows == 2 else [request.prompt]
        request.guided = weights.encode(prompts)
        shape = (weights.latent_channels, request.height // weights.vae_scale_factor, request.width // weights.vae_scale_factor)
        for index in range(request.count):
            sampler = PictureSampler(
                request.sampler, weights.scheduler_config, num_steps=request.num_steps, seed=(request.seed + index) % 2**32,
                shape=shape, device=self._device,
            )  # fmt: skip
            request.pictures.append(Picture(request=request, index=index, sampler=sampler))
        self._live += request.pictures

    def _drop_cancelled(self) -> None:
        gone = {picture.request for picture in self._live if picture.request.cancelled.is_set()}
        for request in gone:
            self._live = [picture for picture in self._live if picture.request is not request]
            request.on_end(None)

    def _choose(self) -> list[Picture]:
        """The oldest picture and those that can go with it; every fourth tick the one that has waited longest since its last tick."""
        self._ticks += 1
        first = self._live[0] if self._ticks % FAIR_TICK else min(self._live, key=lambda picture: picture.served)
        return [first, *(picture for picture in self._live if picture is not first and picture.group == first.group)]

    def _tick(self, group: list[Picture]) -> None:
        request = group[0].request
        try:
            run, batches, engine = request.weights.runner(request.width, request.height)
            kind = engine, request.width, request.height
            chosen = fill(group, batches, kind=kind, costs=self._costs)
            begin = time.perf_counter()
            predictions = predict(run, chosen, batches)
            if self._device == "cpu":  # elsewhere the work goes on after the call; there company always pays
                rows = sum(picture.request.rows for picture in chosen)
                self._costs.record(kind, batch_of(rows, batches), time.perf_counter() - begin)
            for picture, prediction in zip(chosen, predictions, strict=True):
                picture.sampler.advance(prediction)
                picture.served = self._ticks
            self._tell(chosen)
            self._finish([picture for picture in chosen if picture.sampler.done], engine)
        except Exception as error:
            self._fail(list({picture.request: None for picture in group}), error)

    def _tell(self, chosen: Sequence[Picture]) -> None:
        for request in {picture.request: None for picture in chosen}:
            step = min(picture.sampler.step for picture in request.pictures)
            previews = []
            if request.preview_steps and step % request.preview_steps == 0 and step < request.pictures[0].sampler.num_steps:
                previews = [request.weights.preview(picture.sampler.latents) for picture in request.pictures]
            request.on_progress(step, request.pictures[0].sampler.num_steps, previews)

    def _finish(self, done: Sequence[Picture], engine: str) -> None:
        for picture in done:
            request = picture.request
            png = request.weights.decode(picture.sampler.latents)[0]
            request.on_picture(picture.index, png, engine)
            self._live.remove(picture)
            if not any(live.request is request for live in self._live):
                request.on_end(None)

    def _fail(self, requests: Sequence[Request], error: Exception) -> None:
        logger.exception("a tick failed", exc_info=error)
        gone = set(requests)
        self._live = [picture for picture in self._live if picture.request not in gone]
        for request in requests:
            request.on_end(error)
        if isinstance(error, torch.AcceleratorError):
            self.failed.set()  # such a device error stays: the process must end
