"""A model as one file and back: bit-equal, with its configs, and in the names that others read."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier import base_model
from atelier.formats import single_file
from atelier.formats.floats import from_fp32, to_fp32
from atelier.formats.keys import TEXT, UNET, VAE, text_missing, unet_names, vae_names
from atelier.formats.tensorfile import TensorFile

PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def test_a_round_trip_is_bit_equal_with_configs_and_tokenizer(tmp_path: Path) -> None:
    single_file.from_diffusers(base_model.folder(), tmp_path / "one.safetensors")
    single_file.to_diffusers(tmp_path / "one.safetensors", tmp_path / "model")
    for part, stem in PARTS.items():
        before, after = (load_file(folder / part / f"{stem}.safetensors") for folder in (base_model.folder(), tmp_path / "model"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    for path in base_model.folder().rglob("*.json"):
        assert json.loads(path.read_text()) == json.loads((tmp_path / "model" / path.relative_to(base_model.folder())).read_text())


def test_another_precision_is_rounded_to_nearest(tmp_path: Path) -> None:
    single_file.from_diffusers(base_model.folder(), tmp_path / "one.safetensors", dtype="BF16")
    found = load_file(tmp_path / "one.safetensors")["model.diffusion_model.out.2.weight"]
    source = load_file(base_model.folder() / "unet" / "diffusion_pytorch_model.safetensors")["conv_out.weight"]
    assert torch.equal(found, source.float().bfloat16())


def test_bf16_rounds_as_torch_does() -> None:
    values = torch.cat(
        [torch.randn(10_000) * 10 ** torch.randint(-20, 20, (10_000,)).float(), torch.tensor([0.0, -0.0, float("inf"), 1e-45])]
    )
    ours = from_fp32(values.numpy(), "BF16")
    assert ours == values.bfloat16().view(torch.int16).numpy().tobytes()
    assert np.array_equal(to_fp32(ours, "BF16"), values.bfloat16().float().numpy())


def sd1(part: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(str(files("atelier.formats"))) / "sd1" / part / "config.json").read_text())
    return content


def test_the_names_of_sd15_are_those_that_diffusers_own_reader_knows() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(sd1("unet")).state_dict(), AutoencoderKL.from_config(sd1("vae")).state_dict()
    names = unet_names(sd1("unet"))
    original = {f"model.diffusion_model.{names.to_original(name)}": tensor for name, tensor in unet.items()}
    assert len(original) == len(unet) == 686
    read = convert_ldm_unet_checkpoint(dict(original), sd1("unet"))
    assert {name: tuple(tensor.shape) for name, tensor in read.items()} == {name: tuple(tensor.shape) for name, tensor in unet.items()}
    table = vae_names(sd1("vae"))
    first_stage = {f"first_stage_model.{table.to_original(name)}": t for name, t in vae.items()}
    first_stage = {n: t[..., None, None] if ".attn_1." in n and t.ndim == 2 else t for n, t in first_stage.items()}
    read = convert_ldm_vae_checkpoint(dict(first_stage), sd1("vae"))
    assert {name: tuple(tensor.shape) for name, tensor in read.items()} == {name: tuple(tensor.shape) for name, tensor in vae.items()}
    # 1,130 in all: 686 + 248 + 196 of the text encoder.
    assert len(first_stage) == 248


def test_the_names_and_shapes_of_sd15_are_those_of_the_table() -> None:
    """sd15_tensors.json: names and shapes of v1-5-pruned-emaonly.safetensors, 1,130 without `position_ids`."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    configs = {part: sd1(part) for part in PARTS}
    with torch.device("meta"):
        models: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_config(configs["unet"]),
            "vae": AutoencoderKL.from_config(configs["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
        }
    found = {
        single_file.original_name(part, name, configs): list(tensor.shape)
        for part, model in models.items()
        for name, tensor in model.state_dict().items()
        if not name.endswith("position_ids")
    }
    # The VAE's attention is a 1x1 convolution there.
    found = {name: [*shape, 1, 1] if ".attn_1." in str(name) and len(shape) == 2 else shape for name, shape in found.items()}
    wanted = json.loads(Path(__file__).with_name("sd15_tensors.json").read_text())
    assert len(wanted) == 1130
    assert found == wanted


def test_a_file_of_sd15_that_carries_nothing_is_read_with_the_configs_on_board(tmp_path: Path) -> None:
    """Of v1-5-pruned-emaonly.safetensors the header alone, its tensors a hole of two gigabytes."""
    table = json.loads(Path(__file__).with_name("sd15_tensors.json").read_text())
    header, end = {}, 0
    for name, shape in table.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path = tmp_path / "v1-5-pruned-emaonly.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    modules = ["unet.up_blocks.3.attentions.2.proj_out", "text_encoder.text_model.encoder.layers.11.mlp.fc2", "unet.none"]
    assert single_file.original_names(TensorFile(path), modules) == {
        "model.diffusion_model.output_blocks.11.1.proj_out.weight": modules[0],
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.weight": modules[1],
    }
    for prefix, names in ((UNET, unet_names(sd1("unet"))), (VAE, vae_names(sd1("vae")))):
        ours = [names.to_diffusers(name.removeprefix(prefix)) for name in table if name.startswith(prefix)]
        assert None not in ours and names.missing([str(name) for name in ours]) == []
    assert text_missing(sd1("text_encoder"), [name.removeprefix(TEXT) for name in table if name.startswith(TEXT)]) == []


def changed(source: Path, target: Path, **tensors: torch.Tensor | None) -> Path:
    """The file with some tensors more, or (None) fewer; dots are written `__`."""
    content: dict[str, Any] = load_file(source) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in content.items() if tensor is not None}, target, metadata=dict(TensorFile(source).metadata))
    return target


def draw(folder: Path) -> np.ndarray[Any, Any]:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    picture: np.ndarray[Any, Any] = pipeline(
        "a noto emoji of a fox", num_inference_steps=2, width=64, height=64, generator=generator, output_type="np"
    ).images
    return picture


def test_a_round_trip_draws_the_same_picture(one: Path, tmp_path: Path) -> None:
    single_file.to_diffusers(one, tmp_path / "model")
    assert np.array_equal(draw(tmp_path / "model"), draw(base_model.folder()))


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.surprise.weight",
        "model.diffusion_model.input_blocks.1.0.surprise.weight",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.surprise.weight",
        "model.diffusion_model.input_blocks.0.0.magic",
        "first_stage_model.encoder.mid.attn_1.surprise.bias",
        "cond_stage_model.transformer.text_model.surprise",
        "surprise",
    ],
)
def test_a_tensor_that_no_rule_maps_fails_with_its_name(one: Path, tmp_path: Path, name: str) -> None:
    path = changed(one, tmp_path / "two.safetensors", **{name: torch.zeros(2)})
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        single_file.to_diffusers(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("model.diffusion_model.out.2.bias", "unet/conv_out.bias"),
        ("first_stage_model.decoder.up.0.block.0.conv1.weight", "vae/decoder.up_blocks.3.resnets.0.conv1.weight"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", "text_encoder/text_model.final_layer_norm.weight"),
    ],
)
def test_a_tensor_that_is_missing_fails_with_its_name(one: Path, tmp_path: Path, gone: str, named: str) -> None:
    path = changed(one, tmp_path / "two.safetensors", **{gone: None})
    with pytest.raises(ValueError, match=named):
        single_file.to_diffusers(path, tmp_path / "model")


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_every_name_comes_back(part: str) -> None:
    from atelier.graphs.files import read_headers

    config = json.loads((base_model.folder() / part / "config.json").read_text())
    names = unet_names(config) if part == "unet" else vae_names(config)
    for name in read_headers(base_model.folder(), part):
        original = names.to_original(name)
        assert original is not None
        assert names.to_diffusers(original) == name


def test_a_file_of_unknown_shapes_without_configs_asks_for_them(tmp_path: Path) -> None:
    single_file.from_diffusers(base_model.folder(), tmp_path / "one.safetensors")
    save_file(load_file(tmp_path / "one.safetensors"), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="config"):
        single_file.to_diffusers(tmp_path / "bare.safetensors", tmp_path / "model")
    single_file.to_diffusers(tmp_path / "bare.safetensors", tmp_path / "model", config=base_model.folder())
    assert (tmp_path / "model" / "tokenizer" / "merges.txt").exists()
