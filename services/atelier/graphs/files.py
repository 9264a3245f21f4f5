"""Where configs and tensors lie in a model's folder (diffusers layout), under the names that today's diffusers gives them.

Imports no torch: headers are read, tensors are not.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""Parts of a model that hold weights, with the stem of their files."""
MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own limit."""

_OLD_VAE_ATTENTION = re.compile(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
_NEW_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """A tensor as its file's header describes it; `dtype` is safetensors' word (F16, BF16, F32, ...)."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """The JSON config of a part (`unet`, `vae`, `text_encoder`, `scheduler`). ValueError where there is none."""
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"the model has no {part}/{path.name}") from None
    except ValueError as error:
        raise ValueError(f"{part}/{path.name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{part}/{path.name} is not a JSON object")
    return content


def weight_files(folder: Path, part: str) -> list[Path]:
    """The safetensors files that hold a part's weights: one, or several where they are sharded. ValueError where there are none."""
    place, stem = folder / part, STEMS[part]
    for variant in ("", ".fp16"):
        path = place / f"{stem}{variant}.safetensors"
        if path.is_file():
            return [path]
        for index in (place / f"{stem}.safetensors.index{variant}.json", place / f"{stem}{variant}.safetensors.index.json"):
            if index.is_file():
                return _shards(index)
    raise ValueError(f"the model has no {part}/{stem}.safetensors (pickled weights are not read)")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted({Path(name).name for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index.name} does not say which files hold the weights") from None
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ValueError(f"the model has no {index.parent.name}/{missing[0]}, which {index.name} names")
    return [index.parent / name for name in names]


def read_header(path: Path) -> dict[str, TensorHeader]:
    """The tensors of a safetensors file by name, from its header alone. ValueError where it is none."""
    with path.open("rb") as stream:
        prefix = stream.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= size <= MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} is not a safetensors file")
        try:
            content: Mapping[str, Any] = json.loads(stream.read(size))
            return {
                name: TensorHeader(name=name, dtype=entry["dtype"], shape=tuple(entry["shape"]))
                for name, entry in content.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path.name} is not a safetensors file") from None


def read_headers(folder: Path, part: str) -> dict[str, TensorHeader]:
    """The tensors of a part by today's name, from the headers alone."""
    found = {}
    for path in weight_files(folder, part):
        for name, header in read_header(path).items():
            today = todays_name(part, name)
            if today:
                found[today] = TensorHeader(name=today, dtype=header.dtype, shape=header.shape)
    return found


def todays_name(part: str, name: str) -> str:
    """The name that diffusers 0.42 and transformers 5 give a tensor; empty for what is no weight.

    Text encoders come with and without `text_model.`, older ones with `position_ids`; the attention of 2022's VAEs had names of its own.
    """
    if part == "text_encoder":
        return "" if name.endswith("position_ids") else name.removeprefix("text_model.")
    if part == "vae" and (match := _OLD_VAE_ATTENTION.fullmatch(name)):
        return f"{match[1]}.{_NEW_VAE_ATTENTION[match[2]]}.{match[3]}"
    return name
