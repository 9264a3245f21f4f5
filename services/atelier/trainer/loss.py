"""The losses of the diffusers scripts, as pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, *, alphas_cumprod: Tensor) -> Tensor:
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e (DDPM, arXiv:2006.11239, eq. 4). latents and noise [B, C, h, w], timesteps [B]."""
    alpha = alphas_cumprod[timesteps].to(latents.dtype).view(-1, 1, 1, 1)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def target(latents: Tensor, noise: Tensor, timesteps: Tensor, *, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """What the UNet shall predict: the noise, or v = sqrt(a_t) e - sqrt(1 - a_t) x_0 (arXiv:2202.00512, app. D)."""
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return noise
    alpha = alphas_cumprod[timesteps].to(latents.dtype).view(-1, 1, 1, 1)
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents


def check_prediction_type(prediction_type: str) -> None:
    """Raises ValueError for what `target` does not know."""
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction type {prediction_type!r} cannot be trained; known: epsilon, v_prediction")


def min_snr_weights(timesteps: Tensor, *, alphas_cumprod: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """min(SNR, gamma)/SNR, for v-prediction min(SNR, gamma)/(SNR + 1) (arXiv:2303.09556). timesteps [B] -> [B]."""
    alpha = alphas_cumprod[timesteps].float()
    snr = alpha / (1 - alpha)
    return snr.clamp(max=gamma) / (snr + 1 if prediction_type == "v_prediction" else snr)


def mse(prediction: Tensor, wanted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error in fp32; with `weights` [B] the mean of the weighted rows."""
    if weights is None:
        return functional.mse_loss(prediction.float(), wanted.float())
    rows = functional.mse_loss(prediction.float(), wanted.float(), reduction="none").mean(dim=list(range(1, prediction.ndim)))
    return (rows * weights).mean()


def prior_preservation_loss(prediction: Tensor, wanted: Tensor, *, weight: float, row_weights: Tensor | None = None) -> Tensor:
    """The subject's loss plus `weight` times the class's (DreamBooth, arXiv:2208.12242, eq. 2).

    The first half of the rows are the subject's, the second the class's.
    """
    subject, prior = prediction.chunk(2)
    subject_wanted, prior_wanted = wanted.chunk(2)
    first, second = row_weights.chunk(2) if row_weights is not None else (None, None)
    return mse(subject, subject_wanted, first) + weight * mse(prior, prior_wanted, second)


def alphas_cumprod_of(scheduler_config: dict[str, object]) -> Tensor:
    """The cumulated alphas [num_train_timesteps] of a scheduler's config, computed as diffusers' DDPMScheduler does."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(scheduler_config)  # type: ignore[no-untyped-call]
    alphas: Tensor = scheduler.alphas_cumprod.to(torch.float32)
    return alphas
