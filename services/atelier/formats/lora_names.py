"""Names of a LoRA's tensors in the forms of the field: which module they adapt, and which part of its pair they are.

Modules are named as in diffusers layout: `unet.down_blocks.0...to_q`, `text_encoder.text_model.encoder.layers.0.self_attn.q_proj`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import StrEnum


class Naming(StrEnum):
    """The namings of LoRAs."""

    DIFFUSERS = "diffusers"
    PEFT = "peft"
    WEBUI = "webui"


SUFFIXES = {
    ".lora_A.weight": "down", ".lora_B.weight": "up", ".lora.down.weight": "down", ".lora.up.weight": "up",
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
}  # fmt: skip
"""How names end, and which part of a pair that is."""
_OLD_PROCESSOR = re.compile(r"(?:\.processor)?\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$")
_OLD_ATTENTION = {
    "unet": {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"},
    "text_encoder": {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"},
}
"""diffusers' attention processors of early 2023."""

WORDS = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "time_embedding", "time_emb_proj", "conv_shortcut", "conv_in",
    "conv_out", "linear_1", "linear_2", "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out", "text_model", "self_attn", "q_proj",
    "k_proj", "v_proj", "out_proj", "attentions", "resnets", "downsamplers", "upsamplers", "attn1", "attn2", "ff", "net", "proj", "conv1",
    "conv2", "conv", "encoder", "layers", "mlp", "fc1", "fc2",
)  # fmt: skip
"""Words of module names, longest meaning first: kohya joins them with `_`, which some of them contain."""
_WORD = re.compile("(" + "|".join(sorted((re.escape(w) for w in WORDS), key=len, reverse=True)) + r"|\d+)(?:_|$)")
_KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
_UNET_ROOTS = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in", "conv_out", "time_embedding.")
_PEFT = "base_model.model."


def naming_of(names: Collection[str]) -> Naming:
    """The naming that keys are in. Raises ValueError when they are of no LoRA."""
    if any(name.startswith(("lora_unet_", "lora_te_")) for name in names):
        return Naming.WEBUI
    if any(name.startswith(_PEFT) for name in names):
        return Naming.PEFT
    components = ("unet.", "text_encoder.", "down_blocks.", "mid_block.", "up_blocks.")
    if any("_lora." in name or (name.startswith(components) and ".lora" in name) for name in names):
        return Naming.DIFFUSERS
    raise ValueError(f"this is no LoRA that is known here; its first tensors are {', '.join(sorted(names)[:5])}")


def place_of(name: str, naming: Naming) -> tuple[str, str] | None:
    """The module that a tensor belongs to, and whether it is `down`, `up` or `alpha`; None where no rule knows it."""
    old = _OLD_PROCESSOR.search(name)
    if old:
        found = _module(name[: old.start()])
        return (f"{found}.{_OLD_ATTENTION[found.partition('.')[0]][old[1]]}", old[2]) if found else None
    for suffix, part in SUFFIXES.items():
        if name.endswith(suffix):
            own = name.removesuffix(suffix)
            module = module_of_webui(own) if naming is Naming.WEBUI else _module(own.removeprefix(_PEFT))
            return (module, part) if module else None
    return None


def names_of(module: str, naming: Naming) -> tuple[str, str, str]:
    """The names of a module's down and up matrix and alpha; the last is empty where alpha stands in the metadata.

    Raises ValueError for a module that kohya's form cannot name so that it is found again.
    """
    if naming is Naming.WEBUI:
        name = webui_module(module)
        if module_of_webui(name) != module:
            raise ValueError(f"kohya's form has no name for {module}")
        return f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"
    # peft adapts one model, which its names therefore leave out.
    name = f"{_PEFT}{module.partition('.')[2]}" if naming is Naming.PEFT else module
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight", ""


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
            return _module(f"{component}.{'.'.join(words)}")
    return None


def _module(name: str) -> str | None:
    """A module with its component in front, and `text_model.` where a text encoder came without."""
    component, _, rest = name.partition(".")
    if component == "text_encoder" or name.startswith(("text_model.", "encoder.")):
        own = (rest if component == "text_encoder" else name).removeprefix("text_model.")
        return f"text_encoder.text_model.{own}" if own.startswith("encoder.") else None
    own = rest if component == "unet" else name
    return f"unet.{own}" if own.startswith(_UNET_ROOTS) else None
