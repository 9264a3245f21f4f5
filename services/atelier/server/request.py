"""A request for pictures and its pictures, as the step loop holds them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from atelier.server.samplers import PictureSampler


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
    """Embeddings [2, 77, D], negative prompt first; without guidance [1, 77, D]."""
    told: int = 0
    """The step that was told last."""

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
