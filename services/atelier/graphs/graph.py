"""A UNet, VAE decoder or text encoder as a tensor program without weights, and its digest. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from atelier.graphs.defaults import DEFAULTS, IGNORED, PER_BLOCK
from atelier.graphs.files import read_config, read_headers


class Role(StrEnum):
    """What a graph is for."""

    UNET = "unet"
    VAE_DECODER = "vae_decoder"
    TEXT_ENCODER = "text_encoder"

    @property
    def part(self) -> str:
        """The folder of a model in diffusers layout that holds its config and tensors."""
        return "vae" if self is Role.VAE_DECODER else str(self)

    def owns(self, tensor: str) -> bool:
        """Whether a tensor of the part, by today's name, belongs to the graph."""
        return self is not Role.VAE_DECODER or tensor.startswith(("decoder.", "post_quant_conv."))


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One tensor program. Models whose graphs have equal digests can use each other's engines."""

    role: Role
    config: Mapping[str, Any]
    """With defaults filled in and what changes no operation left out."""
    tensors: Mapping[str, tuple[int, ...]]
    """Shape of every weight by name."""

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of role, config, tensor names and shapes, in hexadecimal."""
        content = {
            "role": str(self.role),
            "config": dict(self.config),
            "tensors": [[name, list(shape)] for name, shape in sorted(self.tensors.items())],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def graph_of(role: Role, config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> Graph:
    """The graph that a part's config and its tensors (by today's name) describe."""
    owned = {name: shape for name, shape in tensors.items() if role.owns(name)}
    return Graph(role=role, config=canonical_config(role, config), tensors=owned)


def read_graph(folder: Path, role: Role) -> Graph:
    """The graph of the model in a folder, from its config and the headers of its safetensors files.

    Raises ValueError where either is missing or unreadable.
    """
    shapes = {name: header.shape for name, header in read_headers(folder, role.part).items()}
    return graph_of(role, read_config(folder, role.part), shapes)


def canonical_config(role: Role, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the operations: one form for all configs that mean the same. Keys that nobody knows count."""
    known = {key: value for key, value in config.items() if not key.startswith("_") and key not in IGNORED[role]}
    full = {**DEFAULTS[role], **known}
    num_blocks = len(full["block_out_channels"]) if "block_out_channels" in full else 0
    for key in PER_BLOCK[role]:
        if not isinstance(full[key], (list, tuple)):
            full[key] = [full[key]] * num_blocks
    if role is Role.UNET and full["mid_block_only_cross_attention"] is None:
        # A list for the blocks says nothing of the middle one.
        full["mid_block_only_cross_attention"] = config.get("only_cross_attention", False) is True
    return {key: _canonical_value(value) for key, value in full.items()}


def _canonical_value(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_canonical_value(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
