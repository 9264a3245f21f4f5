"""DREAMBOOTH_LORA: a LoRA on the UNet learns; the result is one file in the names that diffusers writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from atelier.artifacts.manifest import Kind
from atelier.trainer.spec import TrainSpec

ROLE, KIND = "lora", Kind.LORA
FILE = "pytorch_lora_weights.safetensors"

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
"""What the script adapts."""
ALL = (
    *ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv",
    "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
"""Feed-forward, projections and convolutions too: learns a subject's details that attention alone does not."""


def prepare(unet: Any, spec: TrainSpec, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Freezes the UNet and puts the adapters on, in fp32; gives the trainable tensors by name.

    What does not learn is kept in the precision `dtype` of the run: autocast would make the same of it in every step.
    """
    from peft import LoraConfig

    unet.requires_grad_(False)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.lora_alpha or spec.rank,  # type: ignore[arg-type]
        lora_dropout=spec.lora_dropout,
        init_lora_weights="gaussian",
        target_modules=list(ALL if spec.lora_layers == "all" else ATTENTION),
    )
    unet.add_adapter(config)
    for parameter in unet.parameters():
        if not parameter.requires_grad and parameter.ndim > 1:  # not the norms, which are computed in fp32
            parameter.data = parameter.data.to(dtype)
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}


def save(base: Path, weights: Mapping[str, Tensor], folder: Path, *, spec: TrainSpec) -> None:
    """Writes the LoRA. Its scale, alpha/rank, is multiplied into the upper matrices, so that every reader applies it as trained."""
    scale = (spec.lora_alpha or spec.rank) / spec.rank
    tensors = {}
    for name, tensor in weights.items():
        plain = f"unet.{name.replace('.default.', '.')}"
        scaled = tensor.detach() * scale if ".lora_B." in plain else tensor.detach()
        tensors[plain] = scaled.float().contiguous().cpu()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
