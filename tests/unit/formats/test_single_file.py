"""A model as one file and back: bit-equal, with its configs, and in the names that others read."""

from __future__ import annotations

import json
import shutil
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


def metadata_of(path: Path) -> dict[str, str]:
    with path.open("rb") as stream:
        content: dict[str, str] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))["__metadata__"]
    return content


def changed(source: Path, target: Path, **tensors: torch.Tensor | None) -> Path:
    """The file with some tensors more, or (None) fewer; dots are written `__`."""
    content: dict[str, Any] = load_file(source) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in content.items() if tensor is not None}, target, metadata=metadata_of(source))
    return target


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "one.safetensors"
    single_file.from_diffusers(base_model.folder(), path)
    return path


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


def test_an_old_folder_gives_the_same_file(one: Path, tmp_path: Path) -> None:
    """2022's names in the VAE, `position_ids`, a text encoder without its prefix, tokenizer.json alone, the writer's path."""
    shutil.copytree(base_model.folder(), tmp_path / "old")
    vae, text = (tmp_path / "old" / part / f"{PARTS[part]}.safetensors" for part in ("vae", "text_encoder"))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(vae)
    for name in [name for name in tensors if ".attentions." in name]:
        stem, _, leaf = name.rpartition(".")
        place = next((today for today in old if stem.endswith(today)), None)
        if place:
            tensors[f"{stem.removesuffix(place)}{old[place]}.{leaf}"] = tensors.pop(name)
    save_file(tensors, vae)
    bare = {name.removeprefix("text_model."): tensor for name, tensor in load_file(text).items()}
    save_file(bare | {"embeddings.position_ids": torch.arange(77)[None]}, text)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "old" / "tokenizer" / name).unlink()
    config = tmp_path / "old" / "unet" / "config.json"
    config.write_text(json.dumps({"_name_or_path": "/home/somebody/unet", **json.loads(config.read_text())}))
    single_file.from_diffusers(tmp_path / "old", tmp_path / "two.safetensors")
    first, second = load_file(one), load_file(tmp_path / "two.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert "somebody" not in str(metadata_of(tmp_path / "two.safetensors"))
    single_file.to_diffusers(tmp_path / "two.safetensors", tmp_path / "model")
    for name in ("vocab.json", "merges.txt"):
        ours, theirs = ((folder / "tokenizer" / name).read_text() for folder in (tmp_path / "model", base_model.folder()))
        assert json.loads(ours) == json.loads(theirs) if name.endswith("json") else ours.split() == theirs.split()


def test_clips_own_vocabulary_stays_at_home_and_comes_back(tmp_path: Path) -> None:
    shutil.copytree(base_model.folder(), tmp_path / "clip")
    shutil.rmtree(tmp_path / "clip" / "tokenizer")
    shutil.copytree(Path(str(files("atelier.formats"))) / "sd1" / "tokenizer", tmp_path / "clip" / "tokenizer")
    single_file.from_diffusers(tmp_path / "clip", tmp_path / "one.safetensors")
    assert len(metadata_of(tmp_path / "one.safetensors")["atelier.files"]) < 20_000
    single_file.to_diffusers(tmp_path / "one.safetensors", tmp_path / "model")
    for path in (tmp_path / "clip").rglob("*.*"):
        if path.suffix in (".json", ".txt"):
            assert (tmp_path / "model" / path.relative_to(tmp_path / "clip")).read_text() == path.read_text()


def test_a_safety_checker_that_does_not_come_along_is_not_named(tmp_path: Path) -> None:
    shutil.copytree(base_model.folder(), tmp_path / "checked")
    index = tmp_path / "checked" / "model_index.json"
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | checker))
    single_file.from_diffusers(tmp_path / "checked", tmp_path / "one.safetensors")
    single_file.to_diffusers(tmp_path / "one.safetensors", tmp_path / "model")
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["safety_checker"] == [None, None]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"../escaped.json": "{}"}),
        json.dumps({"/tmp/escaped.json": "{}"}),
        json.dumps({"unet/../../escaped.json": "{}"}),
        json.dumps({"unet/code.py": "x"}),
        json.dumps({"unet/config.json": 3}),
        json.dumps({"unet/config.json": "{}"}),
        "[" * 100_000,
        "no JSON",
    ],
)
def test_metadata_of_a_stranger_write_nothing(one: Path, tmp_path: Path, text: str) -> None:
    save_file(load_file(one), tmp_path / "two.safetensors", metadata={"atelier.files": text})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"metadata|model has no"):
        single_file.to_diffusers(tmp_path / "two.safetensors", tmp_path / "a" / "model")
    assert sorted(tmp_path.rglob("*")) == before and not (tmp_path.parent / "escaped.json").exists()


def test_a_config_of_a_stranger_is_one_error(one: Path, tmp_path: Path) -> None:
    for unet in ({}, {"down_block_types": 3}, {"down_block_types": ["X"], "up_block_types": ["X"], "layers_per_block": 10**9}):
        carried = json.loads(metadata_of(one)["atelier.files"]) | {"unet/config.json": json.dumps(unet)}
        save_file(load_file(one), tmp_path / "two.safetensors", metadata={"atelier.files": json.dumps(carried)})
        with pytest.raises(ValueError, match="config"):
            single_file.to_diffusers(tmp_path / "two.safetensors", tmp_path / "model")


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


def test_clips_tokenizer_is_on_board() -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(Path(str(files("atelier.formats"))) / "sd1" / "tokenizer")
    ids = tokenizer("a photo of an astronaut riding a horse").input_ids
    assert ids == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 49407]
