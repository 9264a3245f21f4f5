"""Models' weights on a replica's device: many at once, the least used leave first; engines hold none of them and serve all."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from atelier.engines.eager import EagerRunner
from atelier.engines.engine import Engine, Runner
from atelier.graphs.model import Model, encode_prompt, load_model
from atelier.server.memory import affordable, free_memory_bytes

logger = logging.getLogger("atelier.replica")

PREVIEW_PIXELS = 128
BIND_QUIET_SECONDS = 2.0
BIND_AT_LATEST_SECONDS = 60.0
BOUND_BATCHES = 3
"""Of the profile's batches the smallest so many are bound: 2 gained 1.7 times, 4 gained 1.4, 8 gained 1.2 (two cores, fp32)."""
BOUND_COPY = 2.4
"""Memory of a bound batch, measured, in sizes of the weights."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """An engine that runs a variant's graph: its digest, and the runner now in use."""

    digest: str
    engine: Engine
    runner: Runner
    bound: bool = False


class Variant:
    """See batching.Weights. `compiled` is replaced between ticks, never changed."""

    def __init__(self, name: str, model: Model) -> None:
        self.name = name
        self.model = model
        self.scheduler_config: Mapping[str, Any] = model.scheduler_config
        self.latent_channels = model.facts.latent_channels
        self.vae_scale_factor = model.facts.vae_scale_factor
        self.compiled: Compiled | None = None
        parts: tuple[Any, ...] = (model.unet, model.vae, model.text_encoder)
        self.size_bytes = sum(size_bytes(part.parameters()) for part in parts)
        self._eager = EagerRunner(model.unet)
        self._colours = _fit_colours(model)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The UNet's tensors by name."""
        unet: Any = self.model.unet
        return dict(unet.state_dict())

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """See batching.Weights."""
        return encode_prompt(self.model, prompts).float()

    def runner(self, width: int, height: int) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], tuple[int, ...], str]:
        """See batching.Weights: the engine where it takes this size, else eager PyTorch."""
        compiled = self.compiled
        if compiled is not None and (compiled.engine.profile.width, compiled.engine.profile.height) == (width, height):
            name = f"artifacts/{compiled.digest}{'+bound' if compiled.bound else ''}"
            return compiled.runner, compiled.engine.profile.batch_sizes, name
        return self._eager, (), "eager"

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents [n, C, h, w] as pictures [n, 3, H, W] in 0..1, fp32."""
        vae: Any = self.model.vae
        decoded = vae.decode((latents / self.model.facts.scaling_factor).to(vae.dtype), return_dict=False)[0]
        pixels: Tensor = (decoded.float() / 2 + 0.5).clamp(0, 1)
        return pixels

    def decode(self, latents: Tensor) -> list[bytes]:
        """See batching.Weights."""
        return [_png(pixels) for pixels in self.pixels(latents)]

    def preview(self, latents: Tensor) -> bytes:
        """See batching.Weights: each latent as one colour, by a linear map fitted to this VAE."""
        matrix, offset = self._colours
        colours = torch.einsum("chw,cr->rhw", latents[0].float().cpu(), matrix) + offset[:, None, None]
        return _png(colours.clamp(0, 1), side=PREVIEW_PIXELS)


class Variants:
    """The models held, by digest. `load` may be called from any thread; the step loop only reads.

    `quiet_seconds` tells how long the device has had nothing to do: engines are bound when nobody draws, or would wait for long.
    """

    def __init__(
        self, *, quiet_seconds: Callable[[], float], max_models: int = 8, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        self._quiet_seconds = quiet_seconds
        self._held: OrderedDict[str, Variant] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._binding = threading.Lock()
        self._max_models = max_models
        self._dtype = dtype
        self._device = device

    def get(self, name: str, *, use: bool = True) -> Variant | None:
        """A model that is held; it counts as used."""
        with self._lock:
            if use and name in self._held:
                self._held.move_to_end(name)
            return self._held.get(name)

    def held(self) -> list[Variant]:
        """All that are held."""
        with self._lock:
            return list(self._held.values())

    def load(self, name: str, folder: Callable[[], Path]) -> Variant:
        """Loads a model from the folder that `folder` gives; one that is held is given as it is."""
        with self._loading:
            found = self.get(name)
            if found is not None:
                return found
            variant = Variant(name, load_model(folder(), dtype=self._dtype, device=self._device))
            with self._lock:
                self._held[name] = variant
                while len(self._held) > 1 and (len(self._held) > self._max_models or self._crowded(variant)):
                    gone, _ = self._held.popitem(last=False)
                    logger.info("let go of %s", gone)
            return variant

    def keep(self, names: Collection[str]) -> None:
        """Lets go of all others; what is being drawn with them ends as it began."""
        with self._lock:
            for name in [name for name in self._held if name not in names]:
                del self._held[name]

    def attach(self, variant: Variant, digest: str, engine: Engine, *, changed: Callable[[], None]) -> None:
        """Puts an engine under a model: its open form at once, its bound form from a thread beside, where the backend has one."""
        variant.compiled = Compiled(digest=digest, engine=engine, runner=engine.open(variant.weights))
        changed()
        if engine.can_bind:
            threading.Thread(target=self._bind, args=(variant, digest, engine, changed), name="bind", daemon=True).start()

    def _crowded(self, newest: Variant) -> bool:
        """Whether there would be no room for another one like the newest."""
        return free_memory_bytes(self._device) < newest.size_bytes

    def _bind(self, variant: Variant, digest: str, engine: Engine, changed: Callable[[], None]) -> None:
        with self._binding:  # one at a time, and not at once: it takes the cores from those who draw
            end = time.monotonic() + BIND_AT_LATEST_SECONDS
            time.sleep(BIND_QUIET_SECONDS)
            while self._quiet_seconds() < BIND_QUIET_SECONDS and time.monotonic() < end:
                time.sleep(0.2)
            if not self._runs(variant, digest):
                return
            weights = variant.weights
            each = round(BOUND_COPY * size_bytes(weights.values()))
            sizes = affordable(engine.profile.batch_sizes[:BOUND_BATCHES], each_bytes=each, free_bytes=free_memory_bytes(self._device))
            if not sizes:
                logger.info("%s stays in its open form: there is no memory for another copy of its weights", variant.name)
                return
            try:
                runner = engine.bind(weights, batch_sizes=sizes)
            except ValueError as error:
                logger.warning("%s stays in its open form: %s", variant.name, error)
                return
        if self._runs(variant, digest):
            variant.compiled = Compiled(digest=digest, engine=engine, runner=runner, bound=True)
            changed()

    def _runs(self, variant: Variant, digest: str) -> bool:
        """Whether the model is still held, and this engine still under it."""
        compiled = variant.compiled
        return self.get(variant.name, use=False) is variant and compiled is not None and compiled.digest == digest


def size_bytes(tensors: Iterable[Tensor]) -> int:
    """Memory that tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.no_grad()
def _fit_colours(model: Model) -> tuple[Tensor, Tensor]:
    """The linear map from a latent [C] to its colour [3] that fits this VAE best: flat pictures of 27 colours are encoded."""
    vae: Any = model.vae
    levels = torch.tensor([0.0, 0.5, 1.0])
    colours = torch.cartesian_prod(levels, levels, levels)
    side = 8 * model.facts.vae_scale_factor
    flat = (colours * 2 - 1)[:, :, None, None].expand(-1, -1, side, side).to(vae.device, vae.dtype)
    latents = vae.encode(flat).latent_dist.mean.float().mean(dim=(2, 3)).cpu() * model.facts.scaling_factor
    design = torch.cat([latents, torch.ones(len(latents), 1)], dim=1)
    solution = torch.linalg.lstsq(design, colours).solution
    return solution[:-1], solution[-1]


def _png(pixels: Tensor, side: int = 0) -> bytes:
    array = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().contiguous()
    image = Image.frombytes("RGB", (array.shape[1], array.shape[0]), array.numpy().tobytes())
    if side:  # of the longer side
        longest = max(image.size)
        image = image.resize((side * image.width // longest, side * image.height // longest), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
