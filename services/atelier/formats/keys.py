"""Names of tensors in diffusers layout and in original SD files, as tables made from a model's config. Both directions, strict."""

from __future__ import annotations

import re
from collections.abc import Mapping
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

VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
"""Inside the VAE's attention: diffusers -> original. Linear layers there are 1x1 convolutions in original files."""

OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What diffusers called them in 2022, and some folders still do."""

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


@dataclass(frozen=True, kw_only=True)
class Names:
    """Modules of one part: diffusers -> original. `inner` renames inside those modules that match its key."""

    modules: Mapping[str, str]
    inner: Mapping[str, Mapping[str, str]]

    def to_original(self, name: str) -> str | None:
        """The original name of a tensor in diffusers layout; None where no rule knows it."""
        return _translate(name, self.modules, {key: table for key, table in self.inner.items()}, by_target=False)

    def to_diffusers(self, name: str) -> str | None:
        """The name in diffusers layout of a tensor of an original file; None where no rule knows it."""
        reverse = {original: ours for ours, original in self.modules.items()}
        inner = {key: {original: ours for ours, original in table.items()} for key, table in self.inner.items()}
        return _translate(name, reverse, inner, by_target=True)


def unet_names(config: Mapping[str, Any]) -> Names:
    """The UNet's table, from its config."""
    downs, ups = config["down_block_types"], config["up_block_types"]
    layers, blocks = int(config.get("layers_per_block", 2)), len(downs)
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
    return Names(modules=modules, inner={".resnets.": RESNET})


def vae_names(config: Mapping[str, Any]) -> Names:
    """The VAE's table, from its config."""
    blocks, layers = len(config["block_out_channels"]), int(config.get("layers_per_block", 1))
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
        modules[f"encoder.down_blocks.{i}.downsamplers.0"] = f"encoder.down.{i}.downsample"
        for j in range(layers + 1):
            modules[f"decoder.up_blocks.{i}.resnets.{j}"] = f"decoder.up.{blocks - 1 - i}.block.{j}"
        modules[f"decoder.up_blocks.{i}.upsamplers.0"] = f"decoder.up.{blocks - 1 - i}.upsample"
    return Names(modules=modules, inner={".resnets.": {"conv_shortcut": "nin_shortcut"}, ".attentions.": VAE_ATTENTION})


def dropped(name: str) -> bool:
    """Whether a tensor of an original file, or of a text encoder, is left out on purpose."""
    return any(rule.fullmatch(name) for rule, _ in DROPPED)


def vae_today(name: str) -> str:
    """A VAE tensor's name as diffusers writes it today."""
    match = re.fullmatch(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return f"{match[1]}.{OLD_VAE_ATTENTION[match[2]]}.{match[3]}" if match else name


def _translate(name: str, modules: Mapping[str, str], inner: Mapping[str, Mapping[str, str]], *, by_target: bool) -> str | None:
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        if module not in modules:
            continue
        ours = modules[module] if by_target else module
        rest = ".".join(parts[length:])
        for key, table in inner.items():
            if key in f"{ours}.":
                rest = _rename(rest, table)
        return f"{modules[module]}.{rest}"
    return None


def _rename(rest: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if rest == old or rest.startswith(f"{old}."):
            return new + rest[len(old) :]
    return rest
