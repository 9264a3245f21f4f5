"""Configs and tokenizer: whoever wrote them, they travel with a single file, and do nothing else."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier import base_model
from atelier.formats import single_file
from atelier.formats.tensorfile import TensorFile

PARTS = {"vae": "diffusion_pytorch_model", "text_encoder": "model"}


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
    assert "somebody" not in str(TensorFile(tmp_path / "two.safetensors").metadata)
    single_file.to_diffusers(tmp_path / "two.safetensors", tmp_path / "model")
    for name in ("vocab.json", "merges.txt"):
        ours, theirs = ((folder / "tokenizer" / name).read_text() for folder in (tmp_path / "model", base_model.folder()))
        assert json.loads(ours) == json.loads(theirs) if name.endswith("json") else ours.split() == theirs.split()


def test_clips_own_vocabulary_stays_at_home_and_comes_back(tmp_path: Path) -> None:
    shutil.copytree(base_model.folder(), tmp_path / "clip")
    shutil.rmtree(tmp_path / "clip" / "tokenizer")
    shutil.copytree(Path(str(files("atelier.formats"))) / "sd1" / "tokenizer", tmp_path / "clip" / "tokenizer")
    single_file.from_diffusers(tmp_path / "clip", tmp_path / "one.safetensors")
    assert len(TensorFile(tmp_path / "one.safetensors").metadata["atelier.files"]) < 20_000
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
        carried = json.loads(TensorFile(one).metadata["atelier.files"]) | {"unet/config.json": json.dumps(unet)}
        save_file(load_file(one), tmp_path / "two.safetensors", metadata={"atelier.files": json.dumps(carried)})
        with pytest.raises(ValueError, match="config"):
            single_file.to_diffusers(tmp_path / "two.safetensors", tmp_path / "model")


def test_clips_tokenizer_is_on_board() -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(Path(str(files("atelier.formats"))) / "sd1" / "tokenizer")
    ids = tokenizer("a photo of an astronaut riding a horse").input_ids
    assert ids == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 49407]
