"""The step loop: one thread owns the device; each tick is one UNet call for pictures of any request that share weights and size."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from atelier.server.request import Picture, Request, Weights
from atelier.server.rows import Costs, batch_of, fill, predict
from atelier.server.samplers import PictureSampler

__all__ = ["Full", "Request", "StepLoop", "Tick", "Weights"]

logger = logging.getLogger("atelier.replica")

FAIR_TICK = 4
"""Every so manieth tick serves who was not served for longest, so that a long request holds nobody up for ever."""


class Full(Exception):
    """The inbox is full."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A UNet call by `engine`: `rows` were asked for, `batch_rows` computed; `seconds` with the decoding of pictures that it finished.

    Where a GPU goes on after the call returns, only the seconds of many ticks together say something.
    """

    engine: str
    rows: int
    batch_rows: int
    seconds: float


class StepLoop:
    """Start it once; `submit` from any thread. `max_waiting` bounds the inbox, `max_live` the pictures in work.

    `on_lost` is called from the loop's thread when the device has failed for good; the process has to end then. `on_tick` is told there of
    each UNet call.
    """

    def __init__(
        self,
        *,
        device: str = "cpu",
        max_waiting: int = 64,
        max_live: int = 64,
        costs: Costs | None = None,
        on_lost: Callable[[], None] = lambda: None,
        on_tick: Callable[[Tick], None] = lambda tick: None,
    ) -> None:
        self._device = device
        self._on_lost = on_lost
        self._on_tick = on_tick
        self._inbox: queue.Queue[Request | None] = queue.Queue(max_waiting)
        self._max_live = max_live
        self._live: list[Picture] = []
        self._costs = costs or Costs()
        self._ticks = 0
        self._tick_began: float | None = None
        self._worked = time.monotonic()
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

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    def overdue_seconds(self) -> float:
        """How long the running tick, or the start of a request, has lasted; 0 when there is nothing to do."""
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
            self._tick_began = time.monotonic()
            try:
                self._begin(request)
            except Exception as error:
                self._fail([request], error)
            self._tick_began = None
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
            rows = sum(picture.request.rows for picture in chosen)
            batch_rows = batch_of(rows, batches)
            if self._device == "cpu":  # elsewhere the work goes on after the call; there company always pays
                self._costs.record(kind, batch_rows, time.perf_counter() - begin)
            for picture, prediction in zip(chosen, predictions, strict=True):
                picture.sampler.advance(prediction)
                picture.served = self._ticks
            self._tell(chosen)
            self._finish([picture for picture in chosen if picture.sampler.done], engine)
            self._on_tick(Tick(engine=engine, rows=rows, batch_rows=batch_rows, seconds=time.perf_counter() - begin))
        except Exception as error:
            # Those that ended within this tick have all that they asked for.
            self._fail(_requests(picture for picture in group if picture in self._live), error)

    def _tell(self, chosen: Sequence[Picture]) -> None:
        for request in _requests(chosen):
            step, total = min(picture.sampler.step for picture in request.pictures), request.pictures[0].sampler.num_steps
            if step == request.told:  # another picture of it is further behind
                continue
            request.told = step
            previews = []
            if request.preview_steps and step % request.preview_steps == 0 and step < total:
                previews = [request.weights.preview(picture.sampler.latents) for picture in request.pictures]
            request.on_progress(step, total, previews)

    def _finish(self, done: Sequence[Picture], engine: str) -> None:
        for picture in done:
            request = picture.request
            png = request.weights.decode(picture.sampler.latents)[0]
            request.on_picture(picture.index, png, engine)
            self._live.remove(picture)
            if not any(live.request is request for live in self._live):
                request.on_end(None)

    def _fail(self, requests: Sequence[Request], error: Exception) -> None:
        logger.error("a tick failed", exc_info=error)
        if self._is_lost():
            self._on_lost()
        gone = set(requests)
        self._live = [picture for picture in self._live if picture.request not in gone]
        for request in requests:
            request.on_end(error)

    def _is_lost(self) -> bool:
        """Whether the device is of no more use: some errors concern one call, after others every call fails."""
        try:
            return bool(torch.ones(1, device=self._device).add(1).item() != 2)
        except Exception:
            return True


def _requests(pictures: Iterable[Picture]) -> list[Request]:
    return list({picture.request: None for picture in pictures})
