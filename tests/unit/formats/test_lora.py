"""LoRAs in the namings of the field, and merged: the same weights whoever reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier.formats import lora, merging
from atelier.formats.lora_names import Naming
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
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 1.0, "text_encoder.lora_alpha": 3})}
    save_file(tensors, tmp_path / "lora.safetensors", metadata=metadata)
    return tmp_path / "lora.safetensors"


@pytest.mark.parametrize(
    ("naming", "components"),
    [
        (Naming.DIFFUSERS, ("unet.", "text_encoder.")),
        (Naming.WEBUI, ("unet.", "text_encoder.")),
        (Naming.PEFT, ("unet.",)),
        (Naming.PEFT, ("text_encoder.",)),
    ],
)
def test_every_naming_round_trips_bit_for_bit(path: Path, tmp_path: Path, naming: Naming, components: tuple[str, ...]) -> None:
    pairs = {module: pair for module, pair in lora.read(path).items() if module.startswith(components)}
    lora.save(pairs, tmp_path / naming / "x.safetensors", naming)
    again = lora.read(tmp_path / naming / "x.safetensors")
    assert again.keys() == pairs.keys() == {module for module in MODULES if module.startswith(components)}
    for module, pair in pairs.items():
        assert (again[module].down.raw, again[module].up.raw, again[module].scale) == (pair.down.raw, pair.up.raw, pair.scale)
        assert pair.scale == (0.5 if module.startswith("unet.") else 1.5)


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


def test_old_names_of_the_text_encoder_are_read(tmp_path: Path) -> None:
    layer = "text_encoder.text_model.encoder.layers.0"
    names = [f"{layer}.self_attn.to_out_lora", f"{layer}.mlp.fc1.lora_linear_layer"]
    save_file({f"{n}.{part}.weight": torch.ones(2, 2) for n in names for part in ("down", "up")}, tmp_path / "old.safetensors")
    assert list(lora.read(tmp_path / "old.safetensors")) == [f"{layer}.mlp.fc1", f"{layer}.self_attn.out_proj"]


def test_peft_itself_reads_its_form_with_its_scale(tmp_path: Path) -> None:
    """In fp16, whose rounding would change an alpha of 0.3: it stands in the config."""
    from peft import PeftModel

    layer = torch.nn.Sequential()
    layer.add_module("mid_block", torch.nn.Sequential())
    layer.mid_block.add_module("proj", torch.nn.Linear(8, 8, bias=False))
    down, up = torch.randn(2, 8).half(), torch.randn(8, 2).half()
    names = {"unet.mid_block.proj.lora_A.weight": down, "unet.mid_block.proj.lora_B.weight": up}
    save_file(names, tmp_path / "raw.safetensors", metadata={"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 0.3})})
    lora.save(lora.read(tmp_path / "raw.safetensors"), tmp_path / "peft" / "adapter_model.safetensors", Naming.PEFT)
    plain = layer.mid_block.proj.weight.detach().clone()
    merged = PeftModel.from_pretrained(layer, tmp_path / "peft").merge_and_unload()
    assert torch.allclose(merged.mid_block.proj.weight, plain + 0.15 * up.float() @ down.float(), atol=1e-5)


@pytest.mark.parametrize(("alpha", "dtype"), [(2.0, "F16"), (0.3, "F32"), (1e6, "F32")])
def test_alpha_is_never_rounded(tmp_path: Path, alpha: float, dtype: str) -> None:
    matrix = lora.Matrix(dtype="F16", shape=(4, 4), raw=np.ones((4, 4), "<f2").tobytes())
    module = "unet.mid_block.resnets.0.conv1"
    lora.save({module: lora.Pair(down=matrix, up=matrix, alpha=alpha)}, tmp_path / "x.safetensors", Naming.WEBUI)
    assert TensorFile(tmp_path / "x.safetensors").entries["lora_unet_mid_block_resnets_0_conv1.alpha"].dtype == dtype
    assert lora.read(tmp_path / "x.safetensors")[module].scale == pytest.approx(alpha / 4, rel=1e-7)


def test_kohyas_alpha_is_the_rank_where_there_is_none(tmp_path: Path) -> None:
    name = "lora_unet_down_blocks_0_downsamplers_0_conv"
    tensors = {f"{name}.lora_down.weight": torch.ones(4, 8, 3, 3), f"{name}.lora_up.weight": torch.ones(8, 4, 1, 1)}
    save_file(tensors, tmp_path / "x.safetensors")
    (pair,) = lora.read(tmp_path / "x.safetensors").values()
    assert (pair.scale, pair.rank) == (1.0, 4)
    assert np.array_equal(merging.delta(pair), np.full((8, 72), 4.0))


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 4}, 2.0),
        ({"lora_alpha": 4, "use_rslora": True}, 4 / 2**0.5),
        ({"lora_alpha": 4, "alpha_pattern": {"attn1.to_q": 1}}, 0.5),
        ({"lora_alpha": 4, "alpha_pattern": {"tn1.to_q": 1}}, 2.0),
    ],
)
def test_pefts_config_beside_the_file_gives_the_scale(tmp_path: Path, config: dict[str, object], scale: float) -> None:
    name = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}, tmp_path / "adapter_model.safetensors"
    )
    assert lora.assumes_scale(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert not lora.assumes_scale(tmp_path / "adapter_model.safetensors")
    (pair,) = lora.read(tmp_path / "adapter_model.safetensors").values()
    assert pair.scale == pytest.approx(scale)


@pytest.mark.parametrize("config", ["{", "[1]", '{"lora_alpha": NaN}', '{"lora_alpha": "4"}', '{"alpha_pattern": {"(a+)+$": 1}}'])
def test_a_config_without_sense_is_refused(tmp_path: Path, config: str) -> None:
    name = "base_model.model.mid_block.proj_in"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}, tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(ValueError, match=r"alpha|adapter_config"):
        lora.read(tmp_path / "adapter_model.safetensors")


MODULE = "unet.mid_block.attentions.0.proj_in"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{MODULE}.lora_A.weight": torch.ones(2, 8)}, MODULE),
        ({f"{MODULE}.lora_A.weight": torch.ones(2, 8), f"{MODULE}.lora_B.weight": torch.ones(8, 3)}, "no pair"),
        ({f"{MODULE}.lora_A.weight": torch.ones(0, 8), f"{MODULE}.lora_B.weight": torch.ones(8, 0)}, "no pair"),
        ({f"{MODULE}.lora_A.weight": torch.ones(2), f"{MODULE}.lora_B.weight": torch.ones(8, 2)}, "no pair"),
        ({f"{MODULE}.lora_A.weight": torch.ones(2, 8, dtype=torch.int8), f"{MODULE}.lora_B.weight": torch.ones(8, 2)}, "floating"),
        ({f"{MODULE}.lora_{x}.weight": torch.ones(2, 2) for x in "AB"} | {f"{MODULE}.lora.up.weight": torch.ones(2, 2)}, "twice"),
        ({f"{MODULE}.lora_{x}.weight": torch.ones(2, 2) for x in "AB"} | {f"{MODULE}.alpha": torch.tensor(torch.nan)}, "alpha"),
        ({f"{MODULE}.lora_{x}.weight": torch.ones(2, 2) for x in "AB"} | {f"{MODULE}.alpha": torch.ones(0)}, "alpha"),
        ({f"{MODULE}.lora_{x}.weight": torch.ones(2, 2) for x in "AB"} | {f"{MODULE}.dora_scale": torch.ones(2)}, "dora_scale"),
        ({f"{MODULE}.lora_{x}.weight": torch.ones(2, 2) for x in "AB"} | {"text_encoder_2.x.lora_A.weight": torch.ones(2, 2)}, "encoder_2"),
        ({"lora_unet_input_blocks_1_1_proj_in.lora_up.weight": torch.ones(2, 2)}, "input_blocks"),
        ({"lora_unet_mid_block_resnets_0_conv1.hada_w1_a": torch.ones(2, 2)}, "hada_w1_a"),
    ],
)
def test_what_is_no_lora_of_ours_is_named(tmp_path: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=words):
        lora.read(tmp_path / "x.safetensors")


def test_pefts_form_holds_one_model(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one model"):
        lora.save(lora.read(path), tmp_path / "x.safetensors", Naming.PEFT)


def test_a_lora_that_diverged_spoils_no_model(tmp_path: Path) -> None:
    source = tmp_path / "unet.safetensors"
    save_file({"mid_block.attentions.0.proj_in.weight": torch.ones(8, 8)}, source)
    save_file(
        {f"{MODULE}.lora_A.weight": torch.full((2, 8), torch.inf), f"{MODULE}.lora_B.weight": torch.ones(8, 2)}, tmp_path / "x.safetensors"
    )
    weighted = [merging.Weighted(pairs=lora.read(tmp_path / "x.safetensors"), ratio=1.0)]
    outputs = merging.merged(TensorFile(source), weighted, {"mid_block.attentions.0.proj_in.weight": MODULE}, dtype=None)
    with pytest.raises(ValueError, match=r"proj_in.*not finite"):
        write(tmp_path / "merged.safetensors", outputs, {})
    assert not (tmp_path / "merged.safetensors").exists()


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
