"""The tensors of a model, by the names that today's diffusers and transformers give them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from atelier.graphs.files import todays_name, weight_files


def read_weights(folder: Path, part: str, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """All tensors of a part (`unet`, `vae`, `text_encoder`) of the model in `folder`, cast to `dtype` (None: as the file has them).

    Tensors that need no cast are memory-mapped from the file. Raises ValueError where the part has no safetensors file.
    """
    weights = {}
    for path in weight_files(folder, part):
        for name, tensor in load_file(path, device=str(device)).items():
            today = todays_name(part, name)
            if today:
                weights[today] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    return weights
