"""What a merge is for: the merged model draws what base and LoRAs draw together at run time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from atelier import base_model
from atelier.artifacts.manifest import Kind
from atelier.converter.worker import execute
from atelier.formats import lora
from atelier.formats.lora_names import Naming
from atelier.jobs.context import FolderContext
from atelier.v1 import converter_pb2

LAYERS = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "conv1.weight", "proj_in.weight", "ff.net.2.weight")
RATIOS = (0.8, -0.5)
TEXT_LAYERS = ("q_proj.weight", "out_proj.weight", "fc1.weight")


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRAs on UNet, its convolutions too, and text encoder; alpha is not the rank, and not the same everywhere."""
    folder = tmp_path_factory.mktemp("loras")
    weights = {f"unet.{n}": t for n, t in load_file(base_model.folder() / "unet/diffusion_pytorch_model.safetensors").items()}
    weights |= {f"text_encoder.{n}": t for n, t in load_file(base_model.folder() / "text_encoder/model.safetensors").items()}
    generator = torch.Generator().manual_seed(0)
    written = []
    for index, naming in enumerate((Naming.DIFFUSERS, Naming.WEBUI)):
        tensors = {}
        for name, weight in weights.items():
            if name.endswith(LAYERS) or (name.startswith("text_encoder.") and name.endswith(TEXT_LAYERS)):
                module, kernel = name.removesuffix(".weight"), weight.shape[2:]
                tensors[f"{module}.lora_A.weight"] = torch.randn(4, weight.shape[1], *kernel, generator=generator) * 0.1
                tensors[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], 4, *(1 for _ in kernel), generator=generator) * 0.1
        save_file(tensors, folder / "raw.safetensors")
        pairs = lora.read(folder / "raw.safetensors")
        pairs = {m: lora.Pair(down=p.down, up=p.up, alpha=2.0 if ".conv" in m else 3.0) for m, p in pairs.items()}
        written.append(folder / str(index) / "lora.safetensors")
        lora.save(pairs, written[-1], naming)
    return written


def draw(folder: Path, adapters: dict[Path, float]) -> NDArray[np.float32]:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for path in adapters:
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=f"lora{path.parent.name}")
    if adapters:
        pipeline.set_adapters([f"lora{path.parent.name}" for path in adapters], list(adapters.values()))
    generator = torch.Generator().manual_seed(0)
    call: dict[str, Any] = {"num_inference_steps": 4, "width": 128, "height": 128, "output_type": "np"}
    pictures: NDArray[np.float32] = pipeline("a noto emoji of a fox on a blue background", generator=generator, **call).images
    return pictures


@pytest.fixture(scope="module")
def together(loras: list[Path]) -> NDArray[np.float32]:
    return draw(base_model.folder(), dict(zip(loras, RATIOS, strict=True)))


def psnr(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(-10 * np.log10(max(np.mean((one - other) ** 2), 1e-20)))


@pytest.mark.parametrize("base", ["model", "single_file"])
def test_the_merged_model_draws_what_base_and_loras_draw_together(
    tmp_path: Path, loras: list[Path], together: NDArray[np.float32], base: str
) -> None:
    context = FolderContext(tmp_path)
    source = context.add(Kind.MODEL, base_model.folder())
    if base == "single_file":
        source = converted(context, converter_pb2.ConvertRequest(source=source, to=converter_pb2.FORMAT_SINGLE_FILE))
    items = [
        converter_pb2.LoraRatio(lora=context.add(Kind.LORA, path.parent), ratio=ratio) for path, ratio in zip(loras, RATIOS, strict=True)
    ]
    request = converter_pb2.MergeRequest(base=source, loras=items, precision=converter_pb2.SAVE_PRECISION_FP32)
    merged = converted(context, request)
    if base == "single_file":
        merged = converted(context, converter_pb2.ConvertRequest(source=merged, to=converter_pb2.FORMAT_DIFFUSERS))
    assert psnr(draw(context.artifact(merged).folder, {}), together) >= 45


def test_the_loras_change_the_picture(together: NDArray[np.float32]) -> None:
    assert psnr(draw(base_model.folder(), {}), together) < 25


def converted(context: FolderContext, request: converter_pb2.ConvertRequest | converter_pb2.MergeRequest) -> str:
    """The digest of the one output of a job."""
    job = FolderContext(context.root, job=f"jobs/{len(list(context.root.iterdir()))}")
    job.workdir = context.root / f"work-{len(list(context.root.iterdir()))}"
    job.workdir.mkdir()
    execute(request, job)
    (digest,) = job.outputs.values()
    return digest
