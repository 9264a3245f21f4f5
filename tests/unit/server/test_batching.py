"""The step loop: pictures equal those of diffusers' own pipeline, alone or among others; cancels, failures and fairness."""

from __future__ import annotations

import io
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from atelier import base_model
from atelier.graphs.model import load_model
from atelier.server.batching import Full, Request, StepLoop
from atelier.server.samplers import SAMPLERS
from atelier.server.weights import Variant

CLASSES = {name: kind for name, (kind, _) in SAMPLERS.items()}


@pytest.fixture(scope="module")
def variant() -> Variant:
    return Variant("base", load_model(base_model.folder()))


@pytest.fixture
def loop() -> Iterator[StepLoop]:
    loop = StepLoop(max_waiting=8)
    loop.start()
    yield loop
    loop.stop()


class Call:
    """A request and what came of it."""

    def __init__(self, weights: Any, **fields: Any) -> None:
        self.messages: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.pictures: dict[int, bytes] = {}
        self.steps: list[int] = []
        self.ended = threading.Event()
        self.error: Exception | None = None
        values: dict[str, Any] = {
            "prompt": "a fox", "negative_prompt": "", "width": 64, "height": 64, "num_steps": 4, "guidance_scale": 5.0, "sampler": "EULER",
            "seed": 3, "count": 1, "preview_steps": 0,
        }  # fmt: skip
        self.request = Request(
            weights=weights, on_progress=lambda step, total, previews: self.steps.append(step), on_picture=self._picture, on_end=self._end,
            **{**values, **fields},
        )  # fmt: skip

    def _picture(self, index: int, png: bytes, engine: str) -> None:
        self.pictures[index] = png

    def _end(self, error: Exception | None) -> None:
        self.error = error
        self.ended.set()

    def pixels(self, index: int = 0) -> Tensor:
        assert self.ended.wait(60)
        assert self.error is None
        image = Image.open(io.BytesIO(self.pictures[index])).convert("RGB")
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float() / 255


def psnr(one: Tensor, other: Tensor) -> float:
    error = float(((one - other) ** 2).mean())
    return 99.0 if error == 0 else -10 * torch.log10(torch.tensor(error)).item()


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_a_picture_equals_that_of_diffusers_pipeline(variant: Variant, loop: StepLoop, sampler: str) -> None:
    import diffusers

    call = Call(variant, sampler=sampler, num_steps=5, negative_prompt="red")
    loop.submit(call.request)
    kind, extra = SAMPLERS[sampler]
    scheduler = getattr(diffusers, kind).from_config(dict(variant.scheduler_config), **extra)
    model = variant.model
    pipeline = diffusers.StableDiffusionPipeline(
        vae=model.vae, text_encoder=model.text_encoder, tokenizer=model.tokenizer, unet=model.unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(
        "a fox", negative_prompt="red", num_inference_steps=5, guidance_scale=5.0, width=64, height=64, output_type="pt",
        generator=torch.Generator().manual_seed(3),
    ).images[0]  # fmt: skip
    assert psnr(call.pixels(), wanted.permute(1, 2, 0).flatten()) >= 52  # 8 bits alone allow 59


def test_pictures_among_others_equal_those_alone(variant: Variant, loop: StepLoop) -> None:
    different = [{"seed": 1}, {"seed": 2, "num_steps": 6}, {"seed": 3, "sampler": "DPMPP_2M"}, {"seed": 4, "guidance_scale": 1.0}]
    alone = []
    for fields in different:
        call = Call(variant, **fields)
        loop.submit(call.request)
        alone.append(call.pixels())
    together = [Call(variant, **fields) for fields in different]
    for call in together:
        loop.submit(call.request)
    assert all(psnr(call.pixels(), wanted) >= 52 for call, wanted in zip(together, alone, strict=True))


def test_picture_i_has_seed_plus_i(variant: Variant, loop: StepLoop) -> None:
    several, one = Call(variant, seed=10, count=3), Call(variant, seed=12)
    loop.submit(several.request)
    loop.submit(one.request)
    assert psnr(several.pixels(2), one.pixels()) >= 52
    assert len(several.pictures) == 3


class Fake:
    """Weights whose forwards are counted."""

    def __init__(self, name: str = "fake", *, batches: tuple[int, ...] = (), hold: threading.Event | None = None) -> None:
        self.name = name
        self.scheduler_config = {"_class_name": "EulerDiscreteScheduler"}
        self.latent_channels, self.vae_scale_factor = 4, 8
        self.batches, self.hold = batches, hold
        self.calls: list[int] = []
        self.fail_at: int | None = None

    def encode(self, prompts: list[str]) -> Tensor:
        return torch.zeros(len(prompts), 77, 8)

    def runner(self, width: int, height: int) -> Any:
        def run(sample: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
            if self.hold:
                self.hold.wait(10)
            self.calls.append(len(sample))
            if self.fail_at == len(self.calls):
                raise RuntimeError("broken")
            assert len(sample) == len(timesteps) == len(embeddings)
            return torch.zeros_like(sample)

        return run, self.batches, "fake"

    def decode(self, latents: Tensor) -> list[bytes]:
        return [b"png"] * len(latents)

    def preview(self, latents: Tensor) -> bytes:
        return b"preview"


def test_the_smallest_batch_that_fits_is_taken_and_the_rest_is_padding(loop: StepLoop) -> None:
    weights = Fake(batches=(2, 4, 8))
    call = Call(weights, count=3)  # six rows
    loop.submit(call.request)
    assert call.ended.wait(10)
    assert set(weights.calls) == {8}


def test_a_cancelled_request_stops_within_one_step(loop: StepLoop) -> None:
    hold = threading.Event()
    weights = Fake(hold=hold)
    call = Call(weights, num_steps=1000)
    loop.submit(call.request)
    while not loop.overdue_seconds():
        time.sleep(0.001)
    call.request.cancelled.set()
    hold.set()
    assert call.ended.wait(5)
    assert len(weights.calls) <= 1
    assert call.pictures == {}


def test_a_failing_group_takes_no_other_with_it(loop: StepLoop) -> None:
    bad, good = Fake("bad"), Fake("good")
    bad.fail_at = 2
    broken, whole = Call(bad, num_steps=10), Call(good, num_steps=10)
    loop.submit(broken.request)
    loop.submit(whole.request)
    assert broken.ended.wait(10)
    assert whole.ended.wait(10)
    assert isinstance(broken.error, RuntimeError)
    assert (whole.error, whole.pictures) == (None, {0: b"png"})


def test_a_request_that_has_ended_is_not_failed_by_what_its_neighbour_does(loop: StepLoop) -> None:
    hold = threading.Event()
    weights = Fake(hold=hold)
    ends: list[Exception | None] = []
    first, second = Call(weights), Call(weights)
    first.request.on_end = ends.append  # type: ignore[assignment]
    weights.decode = lambda latents: [b"png"] if not first.pictures else 1 / 0  # type: ignore[assignment, return-value]
    for call in (first, second):
        loop.submit(call.request)
    hold.set()
    assert second.ended.wait(10)
    assert isinstance(second.error, ZeroDivisionError)
    assert (ends, first.pictures) == ([None], {0: b"png"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes a device that does not work")
def test_a_device_that_stays_broken_is_told() -> None:
    lost = threading.Event()
    loop = StepLoop(device="cuda", on_lost=lost.set)
    loop.start()
    loop.submit(Call(Fake()).request)
    assert lost.wait(10)
    loop.stop()


def test_an_error_of_a_call_does_not_end_the_process() -> None:
    lost = threading.Event()
    loop = StepLoop(on_lost=lost.set)
    loop.start()
    weights = Fake()
    weights.fail_at = 1
    call = Call(weights)
    loop.submit(call.request)
    assert call.ended.wait(10)
    loop.stop()
    assert isinstance(call.error, RuntimeError) and not lost.is_set()


def test_a_hanging_text_encoder_is_overdue_too(loop: StepLoop) -> None:
    hold = threading.Event()
    weights = Fake()
    weights.encode = lambda prompts: (hold.wait(10), torch.zeros(len(prompts), 77, 8))[1]  # type: ignore[method-assign]
    call = Call(weights)
    assert loop.overdue_seconds() == 0
    loop.submit(call.request)
    while not loop.overdue_seconds():
        time.sleep(0.001)
    hold.set()
    assert call.ended.wait(10)
    while loop.overdue_seconds():
        time.sleep(0.001)


def test_the_oldest_goes_first_and_a_long_one_holds_nobody_up(loop: StepLoop) -> None:
    ended: list[str] = []
    hold = threading.Event()
    names = {"long": 400, "a": 4, "b": 4}
    calls = {name: Call(Fake(name, hold=hold), num_steps=steps) for name, steps in names.items()}
    watchers = [threading.Thread(target=lambda n=name, c=call: (c.ended.wait(20), ended.append(n))) for name, call in calls.items()]
    for watcher in watchers:
        watcher.start()
    for call in calls.values():
        loop.submit(call.request)
    hold.set()
    for watcher in watchers:
        watcher.join()
    assert ended[-1] == "long"


def test_a_full_inbox_refuses(loop: StepLoop) -> None:
    hold = threading.Event()
    weights = Fake(hold=hold)
    first = Call(weights, count=64)
    loop.submit(first.request)
    while not loop.overdue_seconds():
        time.sleep(0.001)
    waiting = [Call(weights) for _ in range(8)]
    for call in waiting:
        loop.submit(call.request)
    with pytest.raises(Full):
        loop.submit(Call(weights).request)
    hold.set()
    assert all(call.ended.wait(20) for call in waiting)


def test_previews_and_progress_are_told(loop: StepLoop) -> None:
    call = Call(Fake(), num_steps=6, preview_steps=2)
    previews: list[int] = []
    call.request.on_progress = lambda step, total, made: (call.steps.append(step), previews.append(len(made)))  # type: ignore[assignment, func-returns-value]
    loop.submit(call.request)
    assert call.ended.wait(10)
    assert call.steps == [1, 2, 3, 4, 5, 6]
    assert previews == [0, 1, 0, 1, 0, 0]


def test_a_step_is_told_once_whatever_number_of_ticks_it_takes(loop: StepLoop) -> None:
    weights = Fake(batches=(2,))  # each picture alone
    call = Call(weights, num_steps=2, count=3, preview_steps=1)
    previews: list[tuple[int, int]] = []
    call.request.on_progress = lambda step, total, made: previews.append((step, len(made)))  # type: ignore[assignment]
    loop.submit(call.request)
    assert call.ended.wait(10)
    assert previews == [(1, 3), (2, 0)]
    assert len(weights.calls) == 6


def test_a_preview_is_small_whatever_its_shape(variant: Variant) -> None:
    sizes = [Image.open(io.BytesIO(variant.preview(torch.zeros(1, 4, *shape)))).size for shape in ((8, 8), (64, 8), (8, 32))]
    assert sizes == [(128, 128), (16, 128), (128, 32)]


def test_a_preview_has_the_colours_of_the_picture(variant: Variant) -> None:
    model = variant.model
    flat = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None].expand(1, 3, 64, 64)
    with torch.no_grad():
        latents = model.vae.encode(flat).latent_dist.mean * model.facts.scaling_factor
    preview = Image.open(io.BytesIO(variant.preview(latents)))
    red, green, blue = preview.getpixel((64, 64))  # type: ignore[misc]
    assert red - max(green, blue) > 60
