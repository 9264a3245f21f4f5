"""A model as one file and back: bit-equal, with its configs, and in the names that others read."""

from __future__ import annotations

import json
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
from atelier.formats.keys import unet_names, vae_names

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


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_every_name_comes_back(part: str) -> None:
    from atelier.graphs.files import read_headers

    config = json.loads((base_model.folder() / part / "config.json").read_text())
    names = unet_names(config) if part == "unet" else vae_names(config)
    for name in read_headers(base_model.folder(), part):
        original = names.to_original(name)
        assert original is not None
        assert names.to_diffusers(original) == name


def test_a_tensor_that_no_rule_maps_fails_with_its_name(tmp_path: Path) -> None:
    single_file.from_diffusers(base_model.folder(), tmp_path / "one.safetensors")
    tensors = load_file(tmp_path / "one.safetensors")
    tensors["model.diffusion_model.surprise.weight"] = torch.zeros(2)
    with (tmp_path / "one.safetensors").open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        metadata = json.loads(stream.read(length))["__metadata__"]
    save_file(tensors, tmp_path / "two.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"model\.diffusion_model\.surprise\.weight"):
        single_file.to_diffusers(tmp_path / "two.safetensors", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_file_of_unknown_shapes_without_configs_asks_for_them(tmp_path: Path) -> None:
    single_file.from_diffusers(base_model.folder(), tmp_path / "one.safetensors")
    save_file(load_file(tmp_path / "one.safetensors"), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="config"):
        single_file.to_diffusers(tmp_path / "bare.safetensors", tmp_path / "model")
    single_file.to_diffusers(tmp_path / "bare.safetensors", tmp_path / "model", config=base_model.folder())
    assert (tmp_path / "model" / "tokenizer" / "merges.txt").exists()


def test_clips_tokenizer_is_on_board() -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(Path(str(files("atelier.formats"))) / "sd1" / "tokenizer")
    ids = tokenizer("a photo of an astronaut riding a horse").input_ids
    assert ids == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 49407]
