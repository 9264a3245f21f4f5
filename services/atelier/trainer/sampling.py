"""Which pictures, timesteps and noise a step has: a pure function of seed, position and rank, so that a resumed run repeats nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from atelier.trainer.latents import Cached


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of one forward: latents and noise [B, C, h, w] (latents scaled), timesteps [B] int64, embeddings [B, 77, D].

    With class pictures the first half of the rows are the subject's, the second half the class's.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    embeddings: Tensor


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws batches. `position` counts forwards of one process from the beginning of the run."""

    instance: Cached
    prior: Cached | None
    batch_size: int
    seed: int
    rank: int
    world_size: int
    num_train_timesteps: int
    scaling_factor: float
    offset_noise: bool

    def batch(self, position: int) -> Batch:
        """The batch at a position. Every picture comes once an epoch, in an order drawn for that epoch, as with the scripts' loader."""
        length = max(len(self.instance), len(self.prior) if self.prior else 0)
        first = (position * self.world_size + self.rank) * self.batch_size
        indices = [self._index(first + i, length) for i in range(self.batch_size)]
        generator = torch.Generator().manual_seed(self.mix("batch", position))
        rows = [self.instance.draw(index % len(self.instance), generator) for index in indices]
        if self.prior is not None:
            rows += [self.prior.draw(index % len(self.prior), generator) for index in indices]
        latents = torch.stack([latent for latent, _ in rows]) * self.scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        if self.offset_noise:
            noise = noise + 0.1 * torch.randn(*latents.shape[:2], 1, 1, generator=generator)
        timesteps = torch.randint(0, self.num_train_timesteps, (len(rows),), generator=generator)
        return Batch(latents=latents, noise=noise, timesteps=timesteps, embeddings=torch.stack([embedding for _, embedding in rows]))

    def mix(self, purpose: str, position: int) -> int:
        """A seed for what else is random at a position."""
        return _mix(self.seed, purpose, position, self.rank)

    def _index(self, place: int, length: int) -> int:
        epoch, index = divmod(place, length)
        order = torch.randperm(length, generator=torch.Generator().manual_seed(_mix(self.seed, "order", epoch, 0)))
        return int(order[index])


def _mix(seed: int, purpose: str, position: int, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{position}/{rank}".encode()).digest()[:7], "big")
