"""What has to be known of a model to use it: sizes and factors, read from its configs, none assumed. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.graphs.files import read_config


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Sizes and factors of one model."""

    width: int
    """Picture width in pixels that the model was trained for."""
    height: int
    """Picture height in pixels that the model was trained for."""
    latent_channels: int
    """Channels of the latents, and of the UNet's sample."""
    vae_scale_factor: int
    """Pixels a latent has along each side."""
    scaling_factor: float
    """Latents are the VAE's posterior times this."""
    context_width: int
    """D of `encoder_hidden_states` [B, 77, D]."""
    context_length: int
    """Tokens of a prompt, padding included: 77 of `encoder_hidden_states` [B, 77, D]."""
    prediction_type: str
    """What the UNet predicts: `epsilon`, `v_prediction` or `sample`."""
    num_train_timesteps: int
    """Timesteps run from 0 to this less one."""
    unet_factor: int
    """Sides of the latents are a multiple of this, or the UNet's skips do not fit."""

    @property
    def picture_multiple(self) -> int:
        """Picture sides are a multiple of so many pixels."""
        return self.vae_scale_factor * self.unet_factor


def from_configs(configs: Mapping[str, Mapping[str, Any]]) -> Facts:
    """Facts from the configs of `unet`, `vae`, `text_encoder` and `scheduler`; what they leave out has diffusers' defaults.

    Raises ValueError for a model that is not of Stable Diffusion's shape (one text encoder, cross attention of one width).
    """
    unet, vae, text, scheduler = (configs[part] for part in ("unet", "vae", "text_encoder", "scheduler"))
    context_width = unet.get("cross_attention_dim", 1280)
    if not isinstance(context_width, int) or unet.get("addition_embed_type"):
        raise ValueError("unet/config.json: only UNets with one cross attention width and no added embeddings are known")
    if context_width != text.get("hidden_size", 512):
        raise ValueError(f"the UNet expects text embeddings of width {context_width}, the text encoder has {text.get('hidden_size', 512)}")
    latent_channels = int(vae.get("latent_channels", 4))
    if unet.get("in_channels", 4) != latent_channels:
        raise ValueError(f"the UNet takes {unet.get('in_channels', 4)} channels, the VAE's latents have {latent_channels}")
    vae_scale_factor = 2 ** (len(vae.get("block_out_channels", (64,))) - 1)
    size = unet.get("sample_size") or 64
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return Facts(
        width=int(width) * vae_scale_factor,
        height=int(height) * vae_scale_factor,
        latent_channels=latent_channels,
        vae_scale_factor=vae_scale_factor,
        scaling_factor=float(vae.get("scaling_factor", 0.18215)),
        context_width=context_width,
        context_length=int(text.get("max_position_embeddings", 77)),
        prediction_type=str(scheduler.get("prediction_type", "epsilon")),
        num_train_timesteps=int(scheduler.get("num_train_timesteps", 1000)),
        unet_factor=2 ** (len(unet.get("block_out_channels", (320, 640, 1280, 1280))) - 1),
    )


def read_facts(folder: Path) -> Facts:
    """Facts of the model in a folder. Raises ValueError for a config that is missing or not of Stable Diffusion's shape."""
    return from_configs({part: read_config(folder, part) for part in ("unet", "vae", "text_encoder", "scheduler")})
