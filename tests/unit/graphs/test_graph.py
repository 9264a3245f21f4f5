from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from atelier import base_model
from atelier.graphs.defaults import DEFAULTS, IGNORED
from atelier.graphs.graph import Graph, Role, canonical_config, graph_of, read_graph

SD15_UNET_AS_PUBLISHED = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
"""unet/config.json of SD 1.5 as it was published in 2022."""


def resaved(unet: Any, folder: Path) -> dict[str, Any]:
    unet.save_config(folder)
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


@pytest.fixture(scope="module")
def sd15() -> Any:
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    with init_empty_weights():
        return UNet2DConditionModel.from_config(SD15_UNET_AS_PUBLISHED)


def test_sd15_as_published_and_resaved_is_the_same_graph(sd15: Any, tmp_path: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in sd15.state_dict().items()}
    config = resaved(sd15, tmp_path)
    assert len(config) > len(SD15_UNET_AS_PUBLISHED) + 20, "today's diffusers writes its defaults out"
    published = graph_of(Role.UNET, SD15_UNET_AS_PUBLISHED, shapes)
    assert published.digest == graph_of(Role.UNET, config, shapes).digest
    assert len(published.tensors) == 686


@pytest.mark.parametrize(
    "change",
    [
        {"_name_or_path": "/somewhere", "_diffusers_version": "0.99.0", "sample_size": 96, "dropout": 0.1},
        {"attention_head_dim": [8, 8, 8, 8], "layers_per_block": [2, 2, 2, 2], "only_cross_attention": [False] * 4},
        {"mid_block_scale_factor": 1.0, "mid_block_only_cross_attention": False, "num_attention_heads": None},
    ],
)
def test_what_changes_no_operation_leaves_the_digest(change: dict[str, Any]) -> None:
    config = {**SD15_UNET_AS_PUBLISHED, **change}
    assert canonical_config(Role.UNET, config) == canonical_config(Role.UNET, SD15_UNET_AS_PUBLISHED)


@pytest.mark.parametrize(
    "change", [{"attention_head_dim": 5}, {"norm_eps": 1e-6}, {"upcast_attention": True}, {"an_option_of_tomorrow": True}]
)
def test_what_changes_an_operation_changes_the_digest(change: dict[str, Any]) -> None:
    config = {**SD15_UNET_AS_PUBLISHED, **change}
    assert canonical_config(Role.UNET, config) != canonical_config(Role.UNET, SD15_UNET_AS_PUBLISHED)


def test_a_tensor_of_another_shape_changes_the_digest() -> None:
    graph = read_graph(base_model.folder(), Role.UNET)
    name, shape = next(iter(graph.tensors.items()))
    other = Graph(role=graph.role, config=graph.config, tensors={**graph.tensors, name: (*shape, 1)})
    assert other.digest != graph.digest


def test_the_table_of_defaults_is_that_of_the_libraries() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig

    for role, kind in (("unet", UNet2DConditionModel), ("vae_decoder", AutoencoderKL)):
        parameters = {name: p.default for name, p in inspect.signature(kind.__init__).parameters.items() if name != "self"}
        assert {name: value for name, value in parameters.items() if name not in IGNORED[role]} == dict(DEFAULTS[role])
    written = CLIPTextConfig().to_dict()
    known = {name: value for name, value in written.items() if not name.startswith("_") and name not in IGNORED["text_encoder"]}
    assert known == dict(DEFAULTS["text_encoder"])


def test_a_vae_with_the_attention_names_of_2022_is_the_same_graph(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny / "vae", tmp_path / "vae")
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = {}
    for name, tensor in load_file(path).items():
        for today, then in old.items():
            name = name.replace(today, then)
        tensors[name] = tensor
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, path)
    assert read_graph(tmp_path, Role.VAE_DECODER).digest == read_graph(tiny, Role.VAE_DECODER).digest


def test_a_text_encoder_with_and_without_prefix_is_the_same_graph(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny / "text_encoder", tmp_path / "text_encoder")
    path = tmp_path / "text_encoder" / "model.safetensors"
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}
    assert tensors.keys().isdisjoint(load_file(path))
    save_file(tensors, path)
    assert read_graph(tmp_path, Role.TEXT_ENCODER).digest == read_graph(tiny, Role.TEXT_ENCODER).digest


def test_the_decoder_is_a_graph_without_the_encoder() -> None:
    graph = read_graph(base_model.folder(), Role.VAE_DECODER)
    assert {name.split(".")[0] for name in graph.tensors} == {"decoder", "post_quant_conv"}
