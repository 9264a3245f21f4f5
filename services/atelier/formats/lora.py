"""A LoRA in the names of diffusers, peft and kohya (WebUI), told by its keys; every naming from and to pairs of matrices by module.

Modules are named as in diffusers layout: `unet.down_blocks.0...to_q`, `text_encoder.text_model.encoder.layers.0.self_attn.q_proj`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from atelier.formats.floats import Buffer, from_fp32, to_fp32
from atelier.formats.tensorfile import Output, TensorFile, write

ADAPTER_METADATA = "lora_adapter_metadata"
"""Where diffusers keeps rank and alpha, as JSON with the component in front: `unet.r`, `unet.lora_alpha`."""


class Naming(StrEnum):
    """The namings of LoRAs."""

    DIFFUSERS = "diffusers"
    PEFT = "peft"
    WEBUI = "webui"


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


_SUFFIXES = {
    ".lora_A.weight": "down", ".lora_B.weight": "up", ".lora.down.weight": "down", ".lora.up.weight": "up",
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
}  # fmt: skip
_OLD_PROCESSOR = re.compile(r"\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$")
_OLD_ATTENTION = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}

WORDS = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "time_embedding", "time_emb_proj", "conv_shortcut", "conv_in",
    "conv_out", "linear_1", "linear_2", "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out", "text_model", "self_attn", "q_proj",
    "k_proj", "v_proj", "out_proj", "attentions", "resnets", "downsamplers", "upsamplers", "attn1", "attn2", "ff", "net", "proj", "conv1",
    "conv2", "conv", "encoder", "layers", "mlp", "fc1", "fc2",
)  # fmt: skip
"""Words of module names, longest meaning first: kohya joins them with `_`, which some of them contain."""
_WORD = re.compile("(" + "|".join(sorted((re.escape(w) for w in WORDS), key=len, reverse=True)) + r"|\d+)(?:_|$)")
_KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}


def naming_of(names: Mapping[str, Any]) -> Naming:
    """The naming that keys are in. Raises ValueError when they are of no LoRA."""
    if any(name.startswith(("lora_unet_", "lora_te_")) for name in names):
        return Naming.WEBUI
    if any(name.startswith("base_model.model.") for name in names):
        return Naming.PEFT
    components = ("unet.", "text_encoder.", "down_blocks.", "mid_block.", "up_blocks.")
    if any("_lora." in name or (name.startswith(components) and ".lora" in name) for name in names):
        return Naming.DIFFUSERS
    raise ValueError(f"this is no LoRA that is known here; its first tensors are {', '.join(sorted(names)[:5])}")


def read(path: Path) -> dict[str, Pair]:
    """The pairs of a LoRA file, by module. Raises ValueError naming every tensor that no rule maps."""
    found: dict[str, dict[str, Any]] = {}
    unknown = []
    source = TensorFile(path)
    naming = naming_of(source.entries)
    for name, entry in source.entries.items():
        place = _place(name, naming)
        if place is None:
            unknown.append(name)
            continue
        module, part = place
        raw = source.raw(name)
        value: Any = Matrix(dtype=entry.dtype, shape=entry.shape, raw=raw)
        found.setdefault(module, {})[part] = float(to_fp32(raw, entry.dtype)[0]) if part == "alpha" else value
    metadata = _adapter_metadata(source, path)
    unknown += [module for module, parts in found.items() if not {"down", "up"} <= parts.keys()]
    if unknown:
        raise ValueError(f"no rule maps these tensors of the LoRA: {', '.join(sorted(unknown)[:10])}")
    pairs = {}
    for module, parts in sorted(found.items()):
        pair = Pair(down=parts["down"], up=parts["up"], alpha=parts.get("alpha"))
        if pair.alpha is None and metadata:
            pair = Pair(down=pair.down, up=pair.up, alpha=_alpha_of(module, pair, metadata))
        pairs[module] = pair
    return pairs


def save(pairs: Mapping[str, Pair], path: Path, naming: Naming) -> None:
    """Writes pairs in a naming; alpha stands in a tensor (WebUI) or in the metadata (diffusers, peft)."""
    outputs: list[Output] = []
    for module, pair in pairs.items():
        down, up, alpha = _names(module, naming)
        outputs += [_output(down, pair.down), _output(up, pair.up)]
        if alpha:
            value = from_fp32(np.array([pair.rank if pair.alpha is None else pair.alpha], dtype=np.float32), pair.down.dtype)
            outputs.append(_output(alpha, Matrix(dtype=pair.down.dtype, shape=(), raw=value)))
    ranks = {pair.rank for pair in pairs.values()}
    alphas = {pair.rank if pair.alpha is None else pair.alpha for pair in pairs.values()}
    metadata: dict[str, str] = {}
    if naming is Naming.WEBUI:
        metadata = {"ss_network_module": "networks.lora", "ss_network_dim": str(max(ranks)), "ss_network_alpha": f"{max(alphas):g}"}
    elif any(pair.scale != 1.0 for pair in pairs.values()):
        metadata = {ADAPTER_METADATA: json.dumps(_metadata_of(pairs))}
    write(path, outputs, metadata)
    if naming is Naming.PEFT:
        config = {"peft_type": "LORA", **_metadata_of(pairs, prefix=False)}
        (path.parent / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def webui_module(module: str) -> str:
    """kohya's name of a module."""
    component, _, rest = module.partition(".")
    return _KOHYA[component] + rest.replace(".", "_")


def module_of_webui(name: str) -> str | None:
    """The module behind kohya's name; None where it is none that is known."""
    for component, prefix in _KOHYA.items():
        if name.startswith(prefix):
            rest, words = name.removeprefix(prefix), []
            while rest:
                match = _WORD.match(rest)
                if not match:
                    return None
                words.append(match[1])
                rest = rest[match.end() :]
            return f"{component}.{'.'.join(words)}"
    return None


def _place(name: str, naming: Naming) -> tuple[str, str] | None:
    old = _OLD_PROCESSOR.search(name)
    if old:
        return _prefixed(f"{name[: old.start()]}.{_OLD_ATTENTION[old[1]]}"), old[2]
    for suffix, part in _SUFFIXES.items():
        if name.endswith(suffix):
            module: str | None = name.removesuffix(suffix)
            if naming is Naming.WEBUI:
                module = module_of_webui(name.removesuffix(suffix))
            elif naming is Naming.PEFT:
                module = name.removesuffix(suffix).removeprefix("base_model.model.")
            return (_prefixed(module), part) if module else None
    return None


def _prefixed(module: str) -> str:
    if module.startswith("text_encoder."):
        rest = module.removeprefix("text_encoder.")
        return module if rest.startswith("text_model.") else f"text_encoder.text_model.{rest}"
    if module.startswith("text_model."):
        return f"text_encoder.{module}"
    return module if module.startswith("unet.") else f"unet.{module}"


def _names(module: str, naming: Naming) -> tuple[str, str, str]:
    if naming is Naming.WEBUI:
        name = webui_module(module)
        return f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"
    if naming is Naming.PEFT:
        name = f"base_model.model.{module}"
        return f"{name}.lora_A.weight", f"{name}.lora_B.weight", ""
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight", ""


def _output(name: str, matrix: Matrix) -> Output:
    return Output(name=name, dtype=matrix.dtype, shape=matrix.shape, pieces=lambda: [matrix.raw])


def _adapter_metadata(source: TensorFile, path: Path) -> dict[str, Any]:
    beside = path.parent / "adapter_config.json"
    if ADAPTER_METADATA in source.metadata:
        content: dict[str, Any] = json.loads(source.metadata[ADAPTER_METADATA])
        return content
    if beside.exists():
        config = json.loads(beside.read_text())
        return {f"unet.{key}": value for key, value in config.items()}
    return {}


def _alpha_of(module: str, pair: Pair, metadata: Mapping[str, Any]) -> float | None:
    component, _, rest = module.partition(".")
    alpha = metadata.get(f"{component}.alpha_pattern", {}).get(rest, metadata.get(f"{component}.lora_alpha"))
    return None if alpha is None or float(alpha) == pair.rank else float(alpha)


def _metadata_of(pairs: Mapping[str, Pair], *, prefix: bool = True) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for component in sorted({module.partition(".")[0] for module in pairs}):
        own = {module.partition(".")[2]: pair for module, pair in pairs.items() if module.startswith(f"{component}.")}
        first = next(iter(own.values()))
        rank, alpha = first.rank, float(first.rank if first.alpha is None else first.alpha)
        alphas = {m: float(p.rank if p.alpha is None else p.alpha) for m, p in own.items()}
        # diffusers 0.35 fails where the patterns are not there, empty or not.
        found: dict[str, Any] = {
            "r": rank,
            "lora_alpha": alpha,
            "target_modules": sorted(own),
            "rank_pattern": {m: p.rank for m, p in own.items() if p.rank != rank},
            "alpha_pattern": {m: a for m, a in alphas.items() if a != alpha},
        }
        content |= {f"{component}.{key}" if prefix else key: value for key, value in found.items()}
    return content
