"""How the noise is taken away: diffusers' schedulers, an instance and a generator for each picture."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SAMPLERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "EULER": ("EulerDiscreteScheduler", {}),
    "EULER_A": ("EulerAncestralDiscreteScheduler", {}),
    "DDIM": ("DDIMScheduler", {}),
    "DPMPP_2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "UNIPC": ("UniPCMultistepScheduler", {}),
}
"""Sampler -> diffusers' class, and what it is given beyond the model's scheduler config."""

AS_PIPELINE: Mapping[str, Any] = {"clip_sample": False, "steps_offset": 1}
"""What StableDiffusionPipeline sets in every scheduler's config, whatever it says."""


class PictureSampler:
    """One picture on its way from noise. `latents` is [1, C, h, w], fp32."""

    def __init__(
        self, name: str, config: Mapping[str, Any], *, num_steps: int, seed: int, shape: tuple[int, int, int], device: str
    ) -> None:
        import diffusers

        kind, extra = SAMPLERS[name]
        self._scheduler: Any = getattr(diffusers, kind).from_config({**config, **AS_PIPELINE}, **extra)
        self._scheduler.set_timesteps(num_steps, device=device)
        self._timesteps = self._scheduler.timesteps
        # The generator is on the CPU whatever the device, so that a seed gives the same picture everywhere.
        self._generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((1, *shape), generator=self._generator)
        self.latents: Tensor = noise.to(device) * self._scheduler.init_noise_sigma
        self._takes_generator = "generator" in inspect.signature(self._scheduler.step).parameters
        self.step = 0

    @property
    def num_steps(self) -> int:
        """Forwards that this sampler makes."""
        return len(self._timesteps)

    @property
    def done(self) -> bool:
        """Whether the picture can be decoded."""
        return self.step >= len(self._timesteps)

    def model_input(self) -> tuple[Tensor, Tensor]:
        """What the UNet is given: scaled latents [1, C, h, w] and the timestep, 0-d."""
        timestep = self._timesteps[self.step]
        return self._scheduler.scale_model_input(self.latents, timestep), timestep

    def advance(self, prediction: Tensor) -> None:
        """One step with the UNet's prediction [1, C, h, w], guidance done."""
        extra = {"generator": self._generator} if self._takes_generator else {}
        self.latents = self._scheduler.step(prediction, self._timesteps[self.step], self.latents, **extra, return_dict=False)[0]
        self.step += 1
