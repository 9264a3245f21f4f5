"""Models with random weights: a tiny one on which every path runs in milliseconds, and one of Stable Diffusion 1.5's size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from atelier import base_model
from atelier.graphs.files import STEMS

TINY: Mapping[str, Mapping[str, Any]] = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": 2,
        "block_out_channels": [16, 32],
        "cross_attention_dim": 32,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "sample_size": 8,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [8, 8, 16, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "norm_num_groups": 4,
        "sample_size": 64,
        "scaling_factor": 0.5,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 812,
    },
}
"""64 pixels, 0.2 million parameters."""

SD15: Mapping[str, Mapping[str, Any]] = {
    "unet": {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768, "sample_size": 64},
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "layers_per_block": 2,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
}
"""Stable Diffusion 1.5's shapes: 512 pixels, 860 million parameters in the UNet."""


def write_random_model(
    folder: Path, *, configs: Mapping[str, Mapping[str, Any]] = TINY, seed: int = 0, dtype: torch.dtype = torch.float16
) -> None:
    """Writes a model with the weights that its modules are initialised with; tokenizer and scheduler are the base model's."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    kinds: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    builders: dict[str, Callable[[], Any]] = {
        "unet": lambda: kinds["unet"].from_config(configs["unet"]),
        "vae": lambda: kinds["vae"].from_config(configs["vae"]),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part, build in builders.items():
            _write_part(folder / part, build(), stem=STEMS[part], dtype=dtype)
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(base_model.folder() / part, folder / part)
    shutil.copy(base_model.folder() / "model_index.json", folder / "model_index.json")


def _write_part(place: Path, module: Any, *, stem: str, dtype: torch.dtype) -> None:
    place.mkdir(parents=True)
    # Transformers of the field look for the prefix; see `files.todays_name`.
    prefix = "text_model." if stem == "model" else ""
    tensors = {prefix + name: tensor.to(dtype).contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, place / f"{stem}.safetensors", metadata={"format": "pt"})
    config = module.config.to_dict() if hasattr(module.config, "to_dict") else dict(module.config)
    content = {key: value for key, value in config.items() if key not in ("_name_or_path", "dtype")}
    (place / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
