"""Pictures made while training: class pictures before, validation pictures on the way. diffusers' own pipeline draws them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from atelier.graphs.model import Model, encode_prompt


def draw(
    model: Model,
    prompt: str,
    *,
    count: int,
    batch_size: int,
    seed: int,
    steps: int,
    guidance_scale: float,
    side: int,
    scheduler: Any = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Image]:
    """Draws `count` pictures of `side` pixels; picture i depends on `seed` and i alone."""
    import diffusers

    unet: Any = model.unet
    if scheduler is None:
        name = str(model.scheduler_config.get("_class_name", "DDIMScheduler"))
        scheduler = getattr(diffusers, name).from_config(dict(model.scheduler_config))
    make: Any = diffusers.StableDiffusionPipeline
    pipeline = make(
        vae=model.vae, text_encoder=model.text_encoder, tokenizer=model.tokenizer, unet=model.unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    embedding, empty = encode_prompt(model, [prompt, ""]).chunk(2)
    for begin in range(0, count, batch_size):
        size = min(batch_size, count - begin)
        generators = [torch.Generator().manual_seed((seed + begin + i) % 2**32) for i in range(size)]
        with torch.no_grad(), torch.autocast(unet.device.type, dtype=dtype, enabled=dtype != torch.float32):
            yield from pipeline(
                prompt_embeds=embedding.expand(size, -1, -1), negative_prompt_embeds=empty.expand(size, -1, -1),
                num_inference_steps=steps, guidance_scale=guidance_scale, generator=generators, height=side, width=side,
            ).images  # fmt: skip


def class_pictures_key(base: str, **facts: Any) -> str:
    """The name under which class pictures are found again: what they depend on."""
    content = json.dumps([base, facts], sort_keys=True, default=str)
    return f"class-pictures/{base[:16]}/{hashlib.sha256(content.encode()).hexdigest()[:32]}"


def make_class_pictures(
    model: Model,
    folder: Path,
    *,
    prompt: str,
    first: int,
    count: int,
    batch_size: int,
    seed: int,
    steps: int,
    guidance_scale: float,
    side: int,
    dtype: torch.dtype,
    done: Callable[[int], None],
) -> None:
    """Writes the class pictures `first` to `first + count - 1` of a seed into `folder`, and tells how many there are.

    Numbered on from what is there already, so that a folder that an earlier run of the seed has filled gets new ones, not the same again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = draw(
        model, prompt, count=count, batch_size=batch_size, seed=seed + first, steps=steps, guidance_scale=guidance_scale, side=side,
        dtype=dtype,
    )  # fmt: skip
    for index, image in enumerate(images):
        image.save(folder / f"class-{seed}-{first + index:05d}.png")
        done(index + 1)


def to_png(image: Image) -> bytes:
    """The picture as PNG."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
