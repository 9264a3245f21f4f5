"""A Stable Diffusion model in memory, from a folder in diffusers layout: safetensors only, offline, no remote code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atelier.graphs.facts import Facts, read_facts
from atelier.graphs.files import read_config
from atelier.graphs.weights import check_weights, read_weights

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True, kw_only=True)
class Model:
    """The parts of a model, ready to run (`eval`, no gradients asked for), and its facts."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: Mapping[str, Any]
    facts: Facts


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Model:
    """Loads every part in `dtype`, whatever the files hold (fp16 files give fp32 masters).

    Raises ValueError for a folder that is no such model, naming the config, file or tensor that is missing, surplus or of another shape.
    """
    return Model(
        unet=load_unet(folder, dtype=dtype, device=device),
        vae=load_vae(folder, dtype=dtype, device=device),
        text_encoder=load_text_encoder(folder, dtype=dtype, device=device),
        tokenizer=load_tokenizer(folder),
        scheduler_config=read_config(folder, "scheduler"),
        facts=read_facts(folder),
    )


def load_unet(folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> UNet2DConditionModel:
    """The UNet alone; see `load_model`."""
    unet: UNet2DConditionModel = _load(folder, "unet", dtype=dtype, device=device)
    return unet


def load_vae(folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> AutoencoderKL:
    """The VAE alone; see `load_model`."""
    vae: AutoencoderKL = _load(folder, "vae", dtype=dtype, device=device)
    return vae


def load_text_encoder(folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> CLIPTextModel:
    """The text encoder alone; see `load_model`."""
    text_encoder: CLIPTextModel = _load(folder, "text_encoder", dtype=dtype, device=device)
    return text_encoder


def _load(folder: Path, part: str, *, dtype: torch.dtype, device: torch.device | str) -> Any:
    module = empty_part(folder, part)
    fill(module, read_weights(folder, part, dtype=dtype, device=device), part=part)
    return module.to(device)  # a text encoder has position ids that are no weights


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer, from `tokenizer/` (vocab.json and merges.txt, or tokenizer.json)."""
    from transformers import CLIPTokenizer

    place = folder / "tokenizer"
    if not (place / "tokenizer.json").is_file() and not (place / "vocab.json").is_file():
        raise ValueError("the model has no tokenizer/vocab.json and no tokenizer/tokenizer.json")
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(place, local_files_only=True)
    return tokenizer


def empty_part(folder: Path, part: str) -> Any:
    """The module of a part (`unet`, `vae`, `text_encoder`) as its config describes it, parameters without memory."""
    from accelerate import init_empty_weights

    config = read_config(folder, part)
    with init_empty_weights():
        if part == "text_encoder":
            from transformers import CLIPTextConfig, CLIPTextModel

            module: nn.Module = CLIPTextModel(CLIPTextConfig(**config))
        else:
            from diffusers import AutoencoderKL, UNet2DConditionModel

            kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
            module = kinds[part].from_config(config)
    return module.eval()


def fill(module: nn.Module, weights: Mapping[str, Tensor], *, part: str) -> None:
    """Makes `weights` the module's own, all of them. ValueError names a tensor that is missing, surplus or of another shape."""
    try:
        check_weights(weights, {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()})
    except ValueError as error:
        raise ValueError(f"{part}: {error}") from None
    module.load_state_dict(dict(weights), strict=True, assign=True)


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str], *, length: int) -> Tensor:
    """Token ids [n, length], int64, cut and padded to `length` (77)."""
    ids: Tensor = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    return ids


@torch.no_grad()
def encode_prompt(model: Model, prompts: Sequence[str]) -> Tensor:
    """Text embeddings [n, 77, D] of `prompts`, in the text encoder's dtype and on its device: its last hidden state."""
    ids = tokenize(model.tokenizer, prompts, length=model.facts.context_length)
    hidden: Tensor = model.text_encoder(ids.to(model.text_encoder.device)).last_hidden_state
    return hidden
