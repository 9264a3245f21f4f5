from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from atelier.graphs.files import read_config, read_header, read_headers, todays_name, weight_files

HEADER = b"\x09\0\0\0\0\0\0\0%-9b"
"""A safetensors file of nothing but its header."""


def test_fp16_variants_are_found(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny / "unet", tmp_path / "unet")
    plain = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    variant = plain.rename(plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert weight_files(tmp_path, "unet") == [variant]
    assert read_headers(tmp_path, "unet") == read_headers(tiny, "unet")


def test_sharded_weights_are_found(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny / "unet", tmp_path / "unet")
    plain = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    shard = plain.rename(plain.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))
    index = {"weight_map": dict.fromkeys(read_header(shard), shard.name)}
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_files(tmp_path, "unet") == [shard]


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ('{"weight_map": {"a": "gone.safetensors"}}', r"the model has no unet/gone.safetensors, which .*index.json names"),
        ('{"weight_map": {"a": "../config.json"}}', r"the model has no unet/config.json"),
        ("{}", "does not say which files hold the weights"),
        ("[]", "does not say which files hold the weights"),
        ("{", "does not say which files hold the weights"),
    ],
)
def test_an_index_that_leads_nowhere_is_named(index: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=sentence):
        weight_files(tmp_path, "unet")


def test_pickled_weights_are_not_read(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(ValueError, match=r"no unet/diffusion_pytorch_model.safetensors \(pickled"):
        weight_files(tmp_path, "unet")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\xff" * 64, HEADER % b"[1]", HEADER % b'{"a": {}}'])
def test_what_is_no_safetensors_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors is not a safetensors file"):
        read_header(path)


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the model has no scheduler/scheduler_config.json"):
        read_config(tmp_path, "scheduler")


def test_position_ids_are_no_weight() -> None:
    assert todays_name("text_encoder", "text_model.embeddings.position_ids") == ""
