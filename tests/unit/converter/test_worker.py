"""Conversions and merges as jobs, through the worker's own entry; pickles do no harm."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier import base_model
from atelier.artifacts.manifest import Kind
from atelier.converter import legacy
from atelier.converter.worker import execute
from atelier.errors import AtelierError
from atelier.jobs.context import FolderContext
from atelier.v1 import converter_pb2

TARGET = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def lora(context: FolderContext, folder: Path, *, width: int = 48) -> str:
    folder.mkdir()
    tensors = {f"unet.{TARGET}.lora_A.weight": torch.randn(4, width), f"unet.{TARGET}.lora_B.weight": torch.randn(width, 4)}
    save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    return context.add(Kind.LORA, folder)


def output(context: FolderContext, role: str) -> Path:
    return context.artifact(context.outputs[role]).folder


def test_a_merge_into_a_single_file_equals_the_merge_into_its_model(tmp_path: Path) -> None:
    context = FolderContext(tmp_path / "c")
    model, adapter = context.add(Kind.MODEL, base_model.folder()), lora(context, tmp_path / "lora")
    execute(converter_pb2.ConvertRequest(source=model, to=converter_pb2.FORMAT_SINGLE_FILE, file_name="v1-5-pruned-emaonly"), context)
    single = context.outputs["single_file"]
    ratio = [converter_pb2.LoraRatio(lora=adapter, ratio=0.5)]
    merged = FolderContext(tmp_path / "c", job="jobs/one")
    merged.workdir = tmp_path / "w1"
    merged.workdir.mkdir()
    execute(converter_pb2.MergeRequest(base=single, loras=ratio), merged)
    file = output(merged, "single_file") / "lora-v1-5-pruned-emaonly.safetensors"
    back = FolderContext(tmp_path / "c", job="jobs/two")
    back.workdir = tmp_path / "w2"
    back.workdir.mkdir()
    execute(converter_pb2.ConvertRequest(source=merged.outputs["single_file"], to=converter_pb2.FORMAT_DIFFUSERS), back)
    folder = FolderContext(tmp_path / "c", job="jobs/three")
    folder.workdir = tmp_path / "w3"
    folder.workdir.mkdir()
    execute(converter_pb2.MergeRequest(base=model, loras=ratio), folder)
    assert file.exists()
    name = "unet/diffusion_pytorch_model.safetensors"
    one, other = load_file(output(back, "model") / name), load_file(output(folder, "model") / name)
    plain = load_file(base_model.folder() / name)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert [key for key in one if not torch.equal(one[key], plain[key])] == [f"{TARGET}.weight"]


def test_a_lora_of_another_architecture_fails_the_merge(tmp_path: Path) -> None:
    context = FolderContext(tmp_path / "c")
    model, adapter = context.add(Kind.MODEL, base_model.folder()), lora(context, tmp_path / "lora", width=320)
    with pytest.raises(AtelierError, match="another architecture") as caught:
        execute(converter_pb2.MergeRequest(base=model, loras=[converter_pb2.LoraRatio(lora=adapter, ratio=1)]), context)
    assert caught.value.reason == "LORA_MISFIT"
    assert context.outputs == {}


def test_a_pickled_lora_becomes_a_webui_file(tmp_path: Path) -> None:
    context = FolderContext(tmp_path / "c")
    (tmp_path / "bin").mkdir()
    tensors = {f"unet.{TARGET}.lora.down.weight": torch.ones(4, 48), f"unet.{TARGET}.lora.up.weight": torch.ones(48, 4)}
    torch.save(tensors, tmp_path / "bin" / "pytorch_lora_weights.bin")
    digest = context.add(Kind.LEGACY, tmp_path / "bin")
    execute(converter_pb2.ConvertRequest(source=digest, to=converter_pb2.FORMAT_LORA_WEBUI, file_name="az"), context)
    found = load_file(output(context, "lora") / "az.safetensors")
    assert torch.equal(found["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight"], torch.ones(4, 48))


def test_a_peft_lora_without_its_config_is_a_warning(tmp_path: Path) -> None:
    context = FolderContext(tmp_path / "c")
    (tmp_path / "peft").mkdir()
    tensors = {f"base_model.model.{TARGET}.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    save_file(tensors, tmp_path / "peft" / "adapter_model.safetensors")
    execute(converter_pb2.ConvertRequest(source=context.add(Kind.LORA, tmp_path / "peft"), to=converter_pb2.FORMAT_LORA_WEBUI), context)
    assert [e["message"] for e in context.events if e.get("level") == "warning"] == [
        "adapter_model.safetensors came without adapter_config.json: alpha is taken as the rank"
    ]


def test_a_merged_folder_is_written_as_the_field_reads_it(tmp_path: Path) -> None:
    """Though its base is none that the field reads: no prefix, tokenizer.json alone, variants, shards."""
    shutil.copytree(base_model.folder(), tmp_path / "base")
    text = tmp_path / "base" / "text_encoder" / "model.safetensors"
    save_file({name.removeprefix("text_model."): t for name, t in load_file(text).items()}, text.with_name("model.fp16.safetensors"))
    text.unlink()
    (tmp_path / "base" / "tokenizer" / "merges.txt").unlink()
    whole = tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    names = {name: f"diffusion_pytorch_model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(load_file(whole))}
    for shard in set(names.values()):
        save_file({name: t for name, t in load_file(whole).items() if names[name] == shard}, whole.with_name(shard))
    whole.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    plain = load_file(whole)
    whole.unlink()
    context = FolderContext(tmp_path / "c")
    ratio = [converter_pb2.LoraRatio(lora=lora(context, tmp_path / "lora"), ratio=1)]
    execute(converter_pb2.MergeRequest(base=context.add(Kind.MODEL, tmp_path / "base"), loras=ratio), context)
    merged = output(context, "model")
    assert {p.name for p in (merged / "unet").iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert {p.name for p in (merged / "text_encoder").iterdir()} == {"config.json", "model.safetensors"}
    assert all(name.startswith("text_model.") for name in load_file(merged / "text_encoder" / "model.safetensors"))
    assert (merged / "tokenizer" / "merges.txt").exists()
    after = load_file(merged / "unet" / "diffusion_pytorch_model.safetensors")
    assert [name for name in plain if not torch.equal(plain[name], after[name])] == [f"{TARGET}.weight"]


class Malice:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> object:
        return (os.system, (f"touch {self.canary}",))


@pytest.mark.parametrize("form", ["zip", "plain"])
def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path, form: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "lora.bin"
    if form == "zip":
        torch.save({"x": Malice(canary)}, path)
    else:
        path.write_bytes(pickle.dumps({"x": Malice(canary)}, protocol=2))
    with pytest.raises(ValueError, match="run code"):
        legacy.to_safetensors(path, tmp_path / "out.safetensors")
    assert not canary.exists()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"x": 3}, "something else than named tensors"),
        ([torch.ones(2)], "something else than named tensors"),
        ({"x": torch.ones(1).expand(10**10)}, "more memory than"),  # 4 bytes that want to be 40 GB
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: object, words: str) -> None:
    torch.save(content, tmp_path / "lora.bin")
    with pytest.raises(ValueError, match=words):
        legacy.to_safetensors(tmp_path / "lora.bin", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_torchscript_is_no_pickle_of_tensors(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "x.bin"))
    with pytest.raises(ValueError, match="TorchScript"):
        legacy.to_safetensors(tmp_path / "x.bin", tmp_path / "out.safetensors")
