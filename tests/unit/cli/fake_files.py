"""Small files in the forms of the field, written without torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path

LORA = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"


def safetensors(path: Path, *names: str) -> Path:
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(names)}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4 * len(names))
    return path


def model(folder: Path) -> Path:
    """A folder that looks like a Stable Diffusion model from outside."""
    for component in ("unet", "vae", "text_encoder"):
        safetensors(folder / component / "model.safetensors", f"{component}.weight")
        (folder / component / "config.json").write_text("{}")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    (folder / "model_index.json").write_text("{}")
    return folder
