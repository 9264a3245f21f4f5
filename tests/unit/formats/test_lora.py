"""LoRAs in the namings of the field, and merged: the same weights whoever reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier.formats import lora, merging
from atelier.formats.lora import Naming
from atelier.formats.tensorfile import TensorFile, write
from atelier.graphs.random_model import write_random_model

MODULES = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (16, 32),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj": (128, 16),
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0": (16, 16),
    "text_encoder.text_model.encoder.layers.1.self_attn.q_proj": (32, 32),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for module, (out, into) in MODULES.items():
        tensors[f"{module}.lora_A.weight"] = torch.randn(2, into, generator=generator)
        tensors[f"{module}.lora_B.weight"] = torch.randn(out, 2, generator=generator)
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 1.0, "text_encoder.lora_alpha": 2})}
    save_file(tensors, tmp_path / "lora.safetensors", metadata=metadata)
    return tmp_path / "lora.safetensors"


@pytest.mark.parametrize("naming", list(Naming))
def test_every_naming_round_trips_bit_for_bit(path: Path, tmp_path: Path, naming: Naming) -> None:
    pairs = lora.read(path)
    lora.save(pairs, tmp_path / naming / "x.safetensors", naming)
    again = lora.read(tmp_path / naming / "x.safetensors")
    assert again.keys() == pairs.keys() == MODULES.keys()
    for module, pair in pairs.items():
        assert (again[module].down.raw, again[module].up.raw, again[module].scale) == (pair.down.raw, pair.up.raw, pair.scale)
    assert pairs["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"].scale == 0.5


def test_webui_names_are_kohyas(path: Path, tmp_path: Path) -> None:
    lora.save(lora.read(path), tmp_path / "w.safetensors", Naming.WEBUI)
    names = load_file(tmp_path / "w.safetensors")
    assert "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight" in names
    assert "lora_te_text_model_encoder_layers_1_self_attn_q_proj.lora_up.weight" in names
    assert float(names["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj.alpha"]) == 1.0


def test_old_names_are_read(tmp_path: Path) -> None:
    prefix = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora"
    save_file({f"{prefix}.down.weight": torch.ones(2, 8), f"{prefix}.up.weight": torch.ones(8, 2)}, tmp_path / "old.safetensors")
    assert list(lora.read(tmp_path / "old.safetensors")) == ["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"]


def test_a_tensor_that_no_rule_maps_is_named(path: Path, tmp_path: Path) -> None:
    tensors = load_file(path)
    tensors["unet.down_blocks.0.lora_magic"] = torch.zeros(1)
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="lora_magic"):
        lora.read(tmp_path / "odd.safetensors")


def test_a_merge_equals_float64_and_copies_the_rest(path: Path, tmp_path: Path) -> None:
    write_random_model(tmp_path / "model")
    source = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    pairs = {module: pair for module, pair in lora.read(path).items() if module.startswith("unet.")}
    weighted = [merging.Weighted(pairs=pairs, ratio=0.7), merging.Weighted(pairs=pairs, ratio=-0.2)]
    opened = TensorFile(source)
    modules = {name: f"unet.{name.removesuffix('.weight')}" for name in opened.entries}
    shapes = {module: opened.entries[name].shape for name, module in modules.items() if name.endswith(".weight")}
    assert merging.misfits(weighted, shapes) == []
    write(tmp_path / "merged.safetensors", merging.merged(opened, weighted, modules, dtype="F32"), {})
    before, after = load_file(source), load_file(tmp_path / "merged.safetensors")
    for name, tensor in before.items():
        wanted = tensor.double()
        pair = pairs.get(f"unet.{name.removesuffix('.weight')}")
        if pair:
            down, up = (np.frombuffer(m.raw, "<f4").reshape(m.shape).astype(np.float64) for m in (pair.down, pair.up))
            wanted = wanted + 0.5 * 0.5 * torch.from_numpy(up @ down)
        assert torch.allclose(after[name].double(), wanted, atol=1e-6), name


def test_a_lora_of_another_architecture_is_named_with_its_shapes(path: Path) -> None:
    weighted = [merging.Weighted(pairs=lora.read(path), ratio=1.0)]
    found = merging.misfits(weighted, {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (320, 320)})
    assert "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q (LoRA [16, 16], model [320, 320])" in found
    assert len(found) == len(MODULES)
