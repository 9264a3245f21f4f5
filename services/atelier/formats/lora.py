"""A LoRA as pairs of matrices by module, from a file in the names of diffusers, peft or kohya (WebUI), and to any of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atelier.formats import lora_scale
from atelier.formats.floats import FLOATS, Buffer, from_fp32, to_fp32
from atelier.formats.lora_names import Naming, names_of, naming_of, place_of
from atelier.formats.tensorfile import Output, TensorFile, write


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A tensor of a LoRA as it lies in a file."""

    dtype: str
    shape: tuple[int, ...]
    raw: Buffer


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The adapter of one module: `down` [r, in, ...], `up` [out, r, ...]; it adds alpha/r * up @ down. `alpha` None means r."""

    down: Matrix
    up: Matrix
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """Inner dimension r."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha / r."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def read(path: Path) -> dict[str, Pair]:
    """The pairs of a LoRA file, by module. Raises ValueError naming every tensor that no rule maps, and for what is no pair."""
    source = TensorFile(path)
    naming = naming_of(source.entries)
    found: dict[str, dict[str, Matrix]] = {}
    unknown = []
    for name, entry in source.entries.items():
        place = place_of(name, naming)
        if place is None:
            unknown.append(name)
            continue
        module, part = place
        if part in found.setdefault(module, {}):
            raise ValueError(f"{name}: {module} has its {part} twice")
        found[module][part] = Matrix(dtype=entry.dtype, shape=entry.shape, raw=source.raw(name))
    unknown += [module for module, parts in found.items() if not {"down", "up"} <= parts.keys()]
    if unknown:
        raise ValueError(f"no rule maps these tensors of the LoRA: {', '.join(sorted(unknown)[:10])}")
    config = lora_scale.read(source.metadata, path.parent)
    return {module: _pair(module, parts, config) for module, parts in sorted(found.items())}


def assumes_scale(path: Path) -> bool:
    """Whether nothing says alpha of a LoRA in peft's names, whose default is not the rank: it is then taken as the rank."""
    source = TensorFile(path)
    told = lora_scale.read(source.metadata, path.parent) or any(name.endswith(".alpha") for name in source.entries)
    return naming_of(source.entries) is Naming.PEFT and not told


def save(pairs: Mapping[str, Pair], path: Path, naming: Naming) -> None:
    """Writes pairs in a naming; alpha stands in a tensor (WebUI), in the metadata (diffusers), or in a config beside the file (peft).

    Raises ValueError for what a naming cannot say: peft's holds one component.
    """
    components = sorted({module.partition(".")[0] for module in pairs})
    if naming is Naming.PEFT and len(components) > 1:
        raise ValueError(
            "peft's form holds the adapter of one model, and this LoRA has unet and text_encoder: choose diffusers' or kohya's"
        )
    outputs: list[Output] = []
    for module, pair in pairs.items():
        down, up, alpha = names_of(module, naming)
        outputs += [_output(down, pair.down), _output(up, pair.up)]
        if alpha:
            outputs.append(_output(alpha, _scalar(_alpha(pair), pair.down.dtype)))
    metadata: dict[str, str] = {}
    if naming is Naming.WEBUI:
        rank, alpha_value = max(pair.rank for pair in pairs.values()), max(_alpha(pair) for pair in pairs.values())
        metadata = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": f"{alpha_value:g}"}
    elif naming is Naming.DIFFUSERS and any(pair.scale != 1.0 for pair in pairs.values()):
        config: dict[str, Any] = {}
        for component in components:
            config |= _config(pairs, component, prefix=f"{component}.")
        metadata = {lora_scale.CARRIED: json.dumps(config)}
    write(path, outputs, metadata)
    if naming is Naming.PEFT:
        config = {"peft_type": "LORA", "base_model_name_or_path": None, "bias": "none", **_config(pairs, components[0])}
        (path.parent / lora_scale.CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _pair(module: str, parts: Mapping[str, Matrix], config: Mapping[str, Any]) -> Pair:
    down, up = parts["down"], parts["up"]
    for matrix in parts.values():
        if matrix.dtype not in FLOATS:
            raise ValueError(f"{module} is of type {matrix.dtype}: a LoRA is floating point")
    fit = len(down.shape) >= 2 and len(up.shape) >= 2 and up.shape[1] == down.shape[0] > 0 and set(up.shape[2:]) <= {1}
    if not fit:
        raise ValueError(f"{module}: {list(down.shape)} and {list(up.shape)} are no pair of down [r, in, ...] and up [out, r]")
    if "alpha" not in parts:
        return Pair(down=down, up=up, alpha=lora_scale.alpha_of(module, down.shape[0], config))
    values = to_fp32(parts["alpha"].raw, parts["alpha"].dtype)
    if values.size != 1 or not np.isfinite(values[0]):
        raise ValueError(f"alpha of {module} must be one finite number, got {values.tolist()[:4]}")
    return Pair(down=down, up=up, alpha=float(values[0]))


def _alpha(pair: Pair) -> float:
    return float(pair.rank) if pair.alpha is None else pair.alpha


def _scalar(value: float, dtype: str) -> Matrix:
    """A number as a tensor of that type; of fp32 where the type would round it."""
    exact = np.array([value], dtype=np.float32)
    try:
        raw = from_fp32(exact, dtype)
    except ValueError:
        raw = b""
    if not raw or to_fp32(raw, dtype)[0] != exact[0]:
        dtype, raw = "F32", from_fp32(exact, "F32")
    return Matrix(dtype=dtype, shape=(), raw=raw)


def _output(name: str, matrix: Matrix) -> Output:
    return Output(name=name, dtype=matrix.dtype, shape=matrix.shape, pieces=lambda: [matrix.raw])


def _config(pairs: Mapping[str, Pair], component: str, *, prefix: str = "") -> dict[str, Any]:
    # Without `text_model.`, which transformers 5 has no more: peft takes a name for the end of a module's, so that both find theirs.
    own = {m.partition(".")[2].removeprefix("text_model."): pair for m, pair in pairs.items() if m.startswith(f"{component}.")}
    ranks = {module: pair.rank for module, pair in own.items()}
    return lora_scale.config_of(ranks, {module: _alpha(pair) for module, pair in own.items()}, prefix=prefix)
