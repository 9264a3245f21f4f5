"""Names of tensors in diffusers layout and in original SD files, as tables made from a model's config. Both directions, strict."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
"""Where the parts begin in an original file."""

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
"""Inside a resnet of the UNet: diffusers -> original."""

_PLACES = (
    *(f"attn{i}.{place}" for i in (1, 2) for place in ("to_q", "to_k", "to_v", "to_out.0")),
    "norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2",
)  # fmt: skip
TRANSFORMER = {name: name for name in ("norm", "proj_in", "proj_out", *(f"transformer_blocks.N.{place}" for place in _PLACES))}
"""Inside an attention of the UNet, where both have the same names; N is the transformer block's number."""

VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
"""Inside a resnet of the VAE: diffusers -> original."""

VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
"""Inside the VAE's attention: diffusers -> original. Linear layers there are 1x1 convolutions in original files."""

PLAIN = {"": ""}
"""A module that is itself a layer."""

TEXT_LAYER = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2",
)  # fmt: skip
"""Inside a layer of the text encoder, where both have the same names."""
_TEXT_NAME = re.compile(
    r"embeddings\.(token|position)_embedding\.weight|final_layer_norm\.(weight|bias)"
    rf"|encoder\.layers\.\d+\.({'|'.join(re.escape(place) for place in TEXT_LAYER)})\.(weight|bias)"
)

DROPPED = (
    (re.compile(r"model_ema\..*"), "the moving average of training"),
    (re.compile(r"(betas|alphas_cumprod.*|sqrt_.*|log_one_minus.*|posterior_.*|lvlb_weights|logvar)"), "the noise schedule"),
    (re.compile(r"cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids"), "a counter"),
    (re.compile(r"text_model\.embeddings\.position_ids|embeddings\.position_ids"), "a counter"),
    (re.compile(r"cond_stage_model\.(logit_scale|text_projection)|text_projection.*|logit_scale"), "not used by Stable Diffusion"),
    (re.compile(r"first_stage_model\.loss\..*"), "the discriminator of training"),
    (re.compile(r"(cond_stage_model|model)\.(device|dummy)"), "no weight"),
)  # fmt: skip
"""Tensors of original files that are left out on purpose, and why."""
_OPTIONAL = ("conv_shortcut", "quant_conv", "post_quant_conv")
_WITHOUT_BIAS = re.compile(r"transformer_blocks\..*\.to_[qkv]")
_MOST_LAYERS = 64


@dataclass(frozen=True, kw_only=True)
class Names:
    """Modules of one part: diffusers -> original; and by what a module's name holds, what is inside it."""

    modules: Mapping[str, str]
    inner: Mapping[str, Mapping[str, str]]

    def to_original(self, name: str) -> str | None:
        """The original name of a tensor in diffusers layout; None where no rule knows it."""
        for module, rest in _splits(name):
            if module in self.modules:
                return _join(self.modules[module], rest, self._inside(module))
        return None

    def to_diffusers(self, name: str) -> str | None:
        """The name in diffusers layout of a tensor of an original file; None where no rule knows it."""
        ours = {original: module for module, original in self.modules.items()}
        for module, rest in _splits(name):
            if module in ours:
                return _join(ours[module], rest, {theirs: own for own, theirs in self._inside(ours[module]).items()})
        return None

    def missing(self, found: Collection[str]) -> list[str]:
        """Tensors, by their names in diffusers layout, that a whole model has and `found` has not."""
        return [name for name in self._wanted() if name not in found]

    def _wanted(self) -> Iterator[str]:
        for module in self.modules:
            for inside in self._inside(module):
                layer = f"{module}.{inside.replace('.N.', '.0.')}" if inside else module
                if not layer.endswith(_OPTIONAL):
                    yield f"{layer}.weight"
                    if not _WITHOUT_BIAS.search(layer):
                        yield f"{layer}.bias"

    def _inside(self, module: str) -> Mapping[str, str]:
        return next((table for key, table in self.inner.items() if key in f"{module}."), PLAIN)


def unet_names(config: Mapping[str, Any]) -> Names:
    """The UNet's table, from its config. ValueError where the config says no blocks."""
    downs, ups = _blocks(config, "down_block_types"), _blocks(config, "up_block_types")
    layers, blocks = _layers(config, 2), len(downs)
    modules = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    for i, kind in enumerate(downs):
        for j in range(layers):
            place = (layers + 1) * i + j + 1
            modules[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{place}.0"
            if "CrossAttn" in kind:
                modules[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{place}.1"
        if i < blocks - 1:
            modules[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{(layers + 1) * (i + 1)}.0.op"
    for i, kind in enumerate(ups):
        for j in range(layers + 1):
            place = (layers + 1) * i + j
            modules[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{place}.0"
            if "CrossAttn" in kind:
                modules[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{place}.1"
        if i < blocks - 1:
            slot = 2 if "CrossAttn" in kind else 1
            modules[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{(layers + 1) * i + layers}.{slot}.conv"
    return Names(modules=modules, inner={".resnets.": RESNET, ".attentions.": TRANSFORMER})


def vae_names(config: Mapping[str, Any]) -> Names:
    """The VAE's table, from its config. ValueError where the config says no blocks."""
    blocks, layers = len(_blocks(config, "block_out_channels")), _layers(config, 1)
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        for name, original in (("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out")):
            modules[f"{half}.{name}"] = f"{half}.{original}"
        modules[f"{half}.mid_block.resnets.0"] = f"{half}.mid.block_1"
        modules[f"{half}.mid_block.attentions.0"] = f"{half}.mid.attn_1"
        modules[f"{half}.mid_block.resnets.1"] = f"{half}.mid.block_2"
    for i in range(blocks):
        for j in range(layers):
            modules[f"encoder.down_blocks.{i}.resnets.{j}"] = f"encoder.down.{i}.block.{j}"
        for j in range(layers + 1):
            modules[f"decoder.up_blocks.{i}.resnets.{j}"] = f"decoder.up.{blocks - 1 - i}.block.{j}"
        if i < blocks - 1:
            modules[f"encoder.down_blocks.{i}.downsamplers.0.conv"] = f"encoder.down.{i}.downsample.conv"
            modules[f"decoder.up_blocks.{i}.upsamplers.0.conv"] = f"decoder.up.{blocks - 1 - i}.upsample.conv"
    return Names(modules=modules, inner={".resnets.": VAE_RESNET, ".attentions.": VAE_ATTENTION})


def text_name(name: str) -> str | None:
    """A text encoder's tensor with `text_model.` in front, as the field reads it, given with or without; None where no rule knows it."""
    rest = name.removeprefix("text_model.")
    return f"text_model.{rest}" if _TEXT_NAME.fullmatch(rest) else None


def text_missing(config: Mapping[str, Any], found: Collection[str]) -> list[str]:
    """Tensors that a whole text encoder of that config has, and `found` has not."""
    layers = _layers(config, 12, key="num_hidden_layers")
    wanted = ["embeddings.token_embedding.weight", "embeddings.position_embedding.weight"]
    places = ["final_layer_norm", *(f"encoder.layers.{i}.{place}" for i in range(layers) for place in TEXT_LAYER)]
    wanted += [f"{place}.{leaf}" for place in places for leaf in ("weight", "bias")]
    return [f"text_model.{name}" for name in wanted if f"text_model.{name}" not in found]


def dropped(name: str) -> bool:
    """Whether a tensor of an original file, or of a text encoder, is left out on purpose."""
    return any(rule.fullmatch(name) for rule, _ in DROPPED)


def _blocks(config: Mapping[str, Any], key: str) -> list[Any]:
    found = config.get(key)
    if not isinstance(found, list) or not 0 < len(found) <= _MOST_LAYERS:
        raise ValueError(f"the config says no {key} that are known here")
    return found


def _layers(config: Mapping[str, Any], default: int, *, key: str = "layers_per_block") -> int:
    found = config.get(key, default)
    if not isinstance(found, int) or not 0 < found <= _MOST_LAYERS:
        raise ValueError(f"the config's {key} must be a number from 1 to {_MOST_LAYERS}, got {found!r}")
    return found


def _splits(name: str) -> Iterator[tuple[str, str]]:
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:length]), ".".join(parts[length:])


def _join(module: str, rest: str, table: Mapping[str, str]) -> str | None:
    inside, _, leaf = rest.rpartition(".")
    block = re.match(r"transformer_blocks\.(\d+)\.", inside)
    found = table.get(inside.replace(f".{block[1]}.", ".N.", 1) if block else inside)
    if found is None or leaf not in ("weight", "bias"):
        return None
    found = found.replace(".N.", f".{block[1]}.", 1) if block else found
    return f"{module}.{found}.{leaf}" if found else f"{module}.{leaf}"
