"""Graphs as modules: tensors in, one tensor out, weights by their names in the model's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atelier.graphs.facts import Facts
from atelier.graphs.graph import Role
from atelier.graphs.model import empty_part, fill
from atelier.graphs.weights import read_weights


class UNet(nn.Module):
    """sample [B, C, H/8, W/8], timesteps [B] float32, encoder_hidden_states [B, 77, D] -> the prediction [B, C, H/8, W/8]."""

    PREFIX = "unet."
    INPUTS = ("sample", "timesteps", "encoder_hidden_states")

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """See the class."""
        prediction: Tensor = self.unet(sample, timesteps, encoder_hidden_states, return_dict=False)[0]
        return prediction


class VAEDecoder(nn.Module):
    """latents [B, C, H/8, W/8], divided by the scaling factor -> pictures [B, 3, H, W] from -1 to 1."""

    PREFIX = ""
    INPUTS = ("latents",)

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.decoder = vae.decoder
        self.post_quant_conv = vae.post_quant_conv

    def forward(self, latents: Tensor) -> Tensor:
        """See the class."""
        pictures: Tensor = self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))
        return pictures


class TextEncoder(nn.Module):
    """input_ids [B, 77] int64 -> the last hidden state [B, 77, D]."""

    PREFIX = "text_encoder."
    INPUTS = ("input_ids",)

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """See the class."""
        hidden: Tensor = self.text_encoder(input_ids, return_dict=False)[0]
        return hidden


MODULES: Mapping[Role, type[UNet] | type[VAEDecoder] | type[TextEncoder]] = {
    Role.UNET: UNet,
    Role.VAE_DECODER: VAEDecoder,
    Role.TEXT_ENCODER: TextEncoder,
}


def load_module(folder: Path, role: Role, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> nn.Module:
    """The graph of the model in `folder` with the model's weights, ready to run. Raises ValueError as `load_model` does."""
    part = empty_part(folder, role.part)
    fill(part, read_weights(folder, role.part, dtype=dtype, device=device), part=role.part)
    return MODULES[role](part.to(device)).eval()


def example_inputs(
    role: Role, facts: Facts, *, batch: int, width: int, height: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Tensor, ...]:
    """Inputs of the graph for pictures of `width` x `height` pixels: the same numbers at every call, whatever dtype and device."""
    generator = torch.Generator().manual_seed(batch)
    factor = facts.vae_scale_factor
    latents = torch.randn(batch, facts.latent_channels, height // factor, width // factor, generator=generator)
    context = torch.randn(batch, facts.context_length, facts.context_width, generator=generator)
    match role:
        case Role.UNET:
            timesteps = torch.linspace(1, facts.num_train_timesteps - 1, batch + 1)[1:].round()
            return latents.to(device, dtype), timesteps.to(device), context.to(device, dtype)
        case Role.VAE_DECODER:
            return (latents.to(device, dtype),)
        case Role.TEXT_ENCODER:
            return (torch.randint(0, 256, (batch, facts.context_length), generator=generator).to(device),)
