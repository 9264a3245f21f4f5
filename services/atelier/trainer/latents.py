"""What training needs of pictures and prompts, computed once: posterior mean and deviation of every crop, embedding of every prompt."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from atelier.graphs.model import Model, encode_prompt
from atelier.trainer.dataset import Filter, Picture, crops

CROPS = 4
"""Crops that are kept of a picture that is not square, unless it is cropped in the middle."""


@dataclass(frozen=True, kw_only=True)
class Cached:
    """Pictures as latents: row i has one or more crops.

    `mean` and `deviation` are [crops, C, h, w], `rows[i]` the crops of picture i, `prompts[i]` its row in `embeddings` [prompts, 77, D].
    """

    mean: Tensor
    deviation: Tensor
    rows: tuple[tuple[int, ...], ...]
    prompts: tuple[int, ...]
    embeddings: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents [C, h, w] of picture `index`, unscaled, drawn from its posterior, and its embedding [77, D]."""
        choices = self.rows[index]
        crop = choices[int(torch.randint(len(choices), (1,), generator=generator))] if len(choices) > 1 else choices[0]
        noise = torch.randn(self.mean.shape[1:], generator=generator)
        return self.mean[crop] + self.deviation[crop] * noise, self.embeddings[self.prompts[index]]


@torch.no_grad()
def cache(
    model: Model,
    pictures: Sequence[Picture],
    *,
    prompt: str,
    resolution: int,
    center_crop: bool,
    filter: Filter,
    seed: int,
    step: Callable[[int], None],
) -> Cached:
    """Encodes pictures and prompts, a picture at a time; `step` is told how many are done."""
    chooser = random.Random(seed)
    vae: Any = model.vae
    means: list[Tensor] = []
    deviations: list[Tensor] = []
    rows: list[tuple[int, ...]] = []
    for index, picture in enumerate(pictures):
        positions = [chooser.random() for _ in range(CROPS)]
        squares = crops(picture.image, resolution=resolution, center=center_crop, positions=positions, filter=filter)
        posterior = vae.encode(torch.stack([to_tensor(square) for square in squares]).to(vae.device)).latent_dist
        rows.append(tuple(range(len(means), len(means) + len(squares))))
        means += list(posterior.mean.float().cpu())
        deviations += list(posterior.std.float().cpu())
        step(index + 1)
    captions = [picture.caption or prompt for picture in pictures]
    distinct = sorted(set(captions))
    embeddings = torch.cat([encode_prompt(model, distinct[i : i + 16]).float().cpu() for i in range(0, len(distinct), 16)])
    return Cached(
        mean=torch.stack(means),
        deviation=torch.stack(deviations),
        rows=tuple(rows),
        prompts=tuple(distinct.index(caption) for caption in captions),
        embeddings=embeddings,
    )


def to_tensor(image: Image) -> Tensor:
    """An RGB picture as [3, H, W] in -1..1, fp32."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
    return pixels.permute(2, 0, 1).float() / 127.5 - 1
