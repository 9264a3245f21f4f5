"""DREAMBOOTH: all UNet weights learn; the result is a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from atelier.artifacts.manifest import Kind
from atelier.formats.folder import rewrite
from atelier.trainer.spec import TrainSpec

ROLE, KIND = "model", Kind.MODEL


def prepare(unet: Any, spec: TrainSpec, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Makes the UNet trainable, as fp32 masters whatever its file held and the run computes in; gives the trainable tensors by name."""
    unet.float().requires_grad_(True)
    return dict(unet.named_parameters())


def save(base: Path, weights: Mapping[str, Tensor], folder: Path, *, spec: TrainSpec) -> None:
    """Writes the model: the base's other parts as the field reads them, the UNet's tensors in the precision of its own."""
    rewrite(base, folder, without=("unet",))
    half = {name: tensor.detach().to(_precision_of(base)).contiguous().cpu() for name, tensor in weights.items()}
    save_file(half, folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def _precision_of(base: Path) -> torch.dtype:
    from atelier.graphs.files import read_headers

    dtypes = {header.dtype for header in read_headers(base, "unet").values()}
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(next(iter(dtypes)), torch.float32) if len(dtypes) == 1 else torch.float32
