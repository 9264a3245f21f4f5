from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier import base_model
from atelier.graphs.graph import Role
from atelier.graphs.model import encode_prompt, load_model, load_unet
from atelier.graphs.modules import example_inputs, load_module
from atelier.graphs.weights import check_weights, distinct_weights, graph_weights


@torch.no_grad()
def test_the_base_model_is_what_diffusers_and_transformers_load() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    folder = base_model.folder()
    model = load_model(folder)
    latents, timesteps, context = example_inputs(Role.UNET, model.facts, batch=2, width=128, height=128)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    assert torch.equal(model.unet(latents, timesteps, context)[0], unet(latents, timesteps, context)[0])
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    assert torch.equal(model.vae.decode(latents)[0], vae.decode(latents)[0])
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    ids = model.tokenizer(["a noto emoji of a fox"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    embedding = encode_prompt(model, ["a noto emoji of a fox"])
    assert embedding.shape == (1, 77, model.facts.context_width)
    assert torch.equal(embedding, text_encoder(ids).last_hidden_state)


def test_fp16_files_give_fp32_masters(tiny: Path) -> None:
    model = load_model(tiny)
    assert {p.dtype for p in model.unet.parameters()} == {torch.float32}
    assert {t.dtype for t in load_file(tiny / "unet" / "diffusion_pytorch_model.safetensors").values()} == {torch.float16}


def test_a_long_prompt_is_cut(tiny: Path) -> None:
    model = load_model(tiny)
    assert encode_prompt(model, ["fox " * 200, ""]).shape == (2, 77, 32)


def test_a_missing_tensor_is_named(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny / "unet", tmp_path / "unet")
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.bias"]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"unet: the weights lack .conv_in.bias"):
        load_unet(tmp_path)


def test_a_config_that_does_not_fit_the_tensors_is_refused(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny / "unet", tmp_path / "unet")
    path = tmp_path / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cross_attention_dim": 64}))
    with pytest.raises(ValueError, match=r"has shape \[\d+, 32\], the graph asks for \[\d+, 64\]"):
        load_unet(tmp_path)


@torch.no_grad()
def test_graphs_compute_what_the_parts_do(tiny: Path) -> None:
    model = load_model(tiny)
    latents, timesteps, context = example_inputs(Role.UNET, model.facts, batch=2, width=64, height=64)
    ids = example_inputs(Role.TEXT_ENCODER, model.facts, batch=2, width=64, height=64)[0]
    expected = {
        Role.UNET: (model.unet(latents, timesteps, context)[0], (latents, timesteps, context)),
        Role.VAE_DECODER: (model.vae.decode(latents)[0], (latents,)),
        Role.TEXT_ENCODER: (model.text_encoder(ids).last_hidden_state, (ids,)),
    }
    for role, (answer, inputs) in expected.items():
        module = load_module(tiny, role)
        assert torch.equal(module(*inputs), answer), role
        names = {name.removeprefix(module.PREFIX) for name, _ in module.named_parameters()}
        assert names == set(graph_weights(tiny, role)), role


def test_no_two_weights_of_a_template_are_equal(tiny: Path) -> None:
    from atelier.graphs.graph import read_graph

    for dtype in (torch.float32, torch.bfloat16):
        weights = distinct_weights(read_graph(tiny, Role.UNET), dtype=dtype)
        assert len({tensor.view(torch.uint8).numpy().tobytes() for tensor in weights.values()}) == len(weights)


def test_weights_that_do_not_fit_are_named() -> None:
    weights = {"a": torch.zeros(2), "b": torch.zeros(3)}
    check_weights(weights, {"a": (2,), "b": (3,)})
    with pytest.raises(ValueError, match="lack 'c'"):
        check_weights(weights, {"a": (2,), "b": (3,), "c": (1,)})
    with pytest.raises(ValueError, match="surplus 'b'"):
        check_weights(weights, {"a": (2,)})
    with pytest.raises(ValueError, match=r"b has shape \[3\], the graph asks for \[4\]"):
        check_weights(weights, {"a": (2,), "b": (4,)})
