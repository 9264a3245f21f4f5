"""Whether a runner computes what another does: four timesteps on fixed inputs, relative L2 of every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atelier.engines.engine import Runner
from atelier.engines.manifest import Precision
from atelier.engines.profile import ShapeProfile
from atelier.graphs.facts import Facts

BOUNDS: Mapping[Precision, float] = {Precision.FP32: 1e-4, Precision.BF16: 5e-2, Precision.FP16: 5e-2}
"""Largest relative L2 that a forward may be off eager PyTorch in fp32."""
NUM_TIMESTEPS = 4
LAST_TIMESTEP = 999
"""Of the 1,000 on which every Stable Diffusion was trained; only where to probe, so that another number would do as well."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a runner was off, by batch: the worst row's relative L2."""

    bound: float
    errors: Mapping[int, float]

    @property
    def passed(self) -> bool:
        """Whether every batch keeps the bound; what is not a number does not."""
        return all(error <= self.bound for error in self.errors.values())

    def __str__(self) -> str:
        figures = ", ".join(f"batch {batch}: {error:.2g}" for batch, error in self.errors.items())
        return f"relative L2 {figures} (bound {self.bound:g})"

    def to_json(self) -> dict[str, Any]:
        """For a manifest."""
        return {"bound": self.bound, "relative_l2": {str(batch): error for batch, error in self.errors.items()}}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Fixed rows for a UNet, on a device: the first four have the four timesteps, and so on."""

    sample: Tensor
    timesteps: Tensor
    encoder_hidden_states: Tensor

    @classmethod
    def make(cls, *, sample: Sequence[int], context: Sequence[int], rows: int, device: torch.device | str = "cpu") -> Inputs:
        """`rows` rows of a sample (C, H/8, W/8) and a context (77, D), the same numbers at every call."""
        generator = torch.Generator().manual_seed(0)
        timesteps = torch.linspace(1, LAST_TIMESTEP, NUM_TIMESTEPS).round()
        return cls(
            sample=torch.randn(rows, *sample, generator=generator).to(device),
            timesteps=timesteps.repeat(-(-rows // NUM_TIMESTEPS))[:rows].to(device),
            encoder_hidden_states=torch.randn(rows, *context, generator=generator).to(device),
        )

    @classmethod
    def of_model(cls, facts: Facts, profile: ShapeProfile, *, device: torch.device | str = "cpu") -> Inputs:
        """Enough rows for every batch of a profile."""
        factor = facts.vae_scale_factor
        return cls.make(
            sample=(facts.latent_channels, profile.height // factor, profile.width // factor),
            context=(facts.context_length, facts.context_width),
            rows=max(NUM_TIMESTEPS, *profile.batch_sizes),
            device=device,
        )

    def __len__(self) -> int:
        return len(self.timesteps)


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """The largest ||actual - expected|| / ||expected|| of any row; NaN where anything is not finite."""
    difference = (actual.float() - expected.float()).flatten(1).norm(dim=1)
    return float((difference / expected.float().flatten(1).norm(dim=1)).max())


def run_rows(runner: Runner, inputs: Inputs, *, batch: int, rows: int) -> Tensor:
    """The runner's answers to the first `rows` rows, taken `batch` at a time; what is missing at the end is taken from the beginning."""
    answers = []
    for start in range(0, rows, batch):
        index = torch.arange(start, start + batch, device=inputs.timesteps.device) % len(inputs)
        answers.append(runner(inputs.sample[index], inputs.timesteps[index], inputs.encoder_hidden_states[index]))
    return torch.cat(answers)[:rows]


def compare(runner: Runner, reference: Runner, *, inputs: Inputs, batch_sizes: Sequence[int], precision: Precision) -> Parity:
    """How far `runner` is off `reference` at each batch. `inputs` has at least four rows, and as many as the largest batch."""
    assert len(inputs) >= max(NUM_TIMESTEPS, *batch_sizes), "every batch needs its rows"
    errors = {}
    # Convolutions in TF32, PyTorch's default on CUDA, would be off by more than fp32's bound.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = run_rows(reference, inputs, batch=batch_sizes[0], rows=len(inputs))
        for batch in batch_sizes:
            rows = max(batch, NUM_TIMESTEPS)
            errors[batch] = relative_l2(run_rows(runner, inputs, batch=batch, rows=rows), expected[:rows])
    return Parity(bound=BOUNDS[precision], errors=errors)
