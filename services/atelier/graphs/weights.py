"""The tensors of a model, by the names that today's diffusers and transformers give them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from atelier.graphs.files import todays_name, weight_files
from atelier.graphs.graph import Graph, Role


def read_weights(folder: Path, part: str, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """All tensors of a part (`unet`, `vae`, `text_encoder`) of the model in `folder`, cast to `dtype` (None: as the file has them).

    Tensors that need no cast are memory-mapped from the file. Raises ValueError where the part has no safetensors file.
    """
    weights = {}
    target = "cpu" if torch.device(device).type == "cpu" else str(device)  # with gloo it is called cpu:0, which safetensors does not know
    for path in weight_files(folder, part):
        for name, tensor in load_file(path, device=target).items():
            today = todays_name(part, name)
            if today:
                weights[today] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    return weights


def graph_weights(folder: Path, role: Role, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The weights that the graph of a role needs of the model in `folder`; see `read_weights`."""
    return {name: tensor for name, tensor in read_weights(folder, role.part, dtype=dtype, device=device).items() if role.owns(name)}


def distinct_weights(graph: Graph, *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights of which no two are equal, small enough that a forward stays finite: to find a weight again by its bytes."""
    generator = torch.Generator().manual_seed(0)
    return {name: (torch.randn(shape, generator=generator) * 0.02).to(dtype) for name, shape in sorted(graph.tensors.items())}


def check_weights(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError that names a weight which is missing, surplus or of another shape than `shapes` asks for."""
    if missing := shapes.keys() - weights.keys():
        raise ValueError(f"the weights lack {min(missing)!r} ({len(missing)} in all)")
    if surplus := weights.keys() - shapes.keys():
        raise ValueError(f"the weights have a surplus {min(surplus)!r} ({len(surplus)} in all)")
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != tuple(shape):
            raise ValueError(f"{name} has shape {list(weights[name].shape)}, the graph asks for {list(shape)}")
