"""alpha of a LoRA where it stands beside the tensors: peft's config, in a file of its own or in the metadata that diffusers writes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CARRIED = "lora_adapter_metadata"
"""Where diffusers keeps rank and alpha, as JSON with the component in front: `unet.r`, `unet.lora_alpha`."""
CONFIG_FILE = "adapter_config.json"
"""Where peft keeps them, beside the tensors."""


def read(metadata: Mapping[str, str], folder: Path) -> Mapping[str, Any]:
    """peft's config, each key with the component in front; empty where there is none. ValueError where it cannot be read."""
    beside = folder / CONFIG_FILE
    if CARRIED in metadata:
        return _object(metadata[CARRIED], CARRIED)
    if beside.exists():
        content = _object(beside.read_text(encoding="utf-8"), CONFIG_FILE)
        return {f"{component}.{key}": value for component in ("unet", "text_encoder") for key, value in content.items()}
    return {}


def alpha_of(module: str, rank: int, config: Mapping[str, Any]) -> float | None:
    """alpha as it acts, so that alpha/rank is the scale; None where it is the rank. ValueError where it is no finite number."""
    component, _, name = module.partition(".")
    found = config.get(f"{component}.lora_alpha")
    for pattern, value in (config.get(f"{component}.alpha_pattern") or {}).items():
        if re.search(r"[^A-Za-z0-9_.]", pattern):
            raise ValueError(f"alpha_pattern {pattern!r} is an expression, which is not supported here; name the modules")
        if name == pattern or name.endswith(f".{pattern}"):
            found = value
            break
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise ValueError(f"alpha of {module} must be a finite number, got {found!r}")
    # Rank-stabilised LoRA (arXiv:2312.03732) scales by alpha / sqrt(rank).
    alpha = float(found) * math.sqrt(rank) if config.get(f"{component}.use_rslora") else float(found)
    return None if alpha == rank else alpha


def config_of(ranks: Mapping[str, int], alphas: Mapping[str, float], *, prefix: str = "") -> dict[str, Any]:
    """peft's config of one component's modules, each key with the prefix in front."""
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    # diffusers 0.35 fails where the patterns are not there, empty or not.
    found: dict[str, Any] = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(ranks),
        "rank_pattern": {module: own for module, own in ranks.items() if own != rank},
        "alpha_pattern": {module: own for module, own in alphas.items() if own != alpha},
    }
    return {prefix + key: value for key, value in found.items()}


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is not JSON") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name} is not a JSON object")
    return content
