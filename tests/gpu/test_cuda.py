"""What needs a CUDA device: an engine of each backend, a run in fp16, and the step loop on the device."""

from __future__ import annotations

import importlib
import io
import os
import queue
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atelier import base_model
from atelier.artifacts.manifest import Kind
from atelier.compiler.worker import execute as compile_job
from atelier.engines import engine as engines
from atelier.engines.backends import tensorrt
from atelier.engines.detect import detect
from atelier.engines.manifest import Backend, EngineManifest, Precision
from atelier.engines.parity import BOUNDS, relative_l2
from atelier.errors import AtelierError, Status
from atelier.graphs.model import load_model, load_unet
from atelier.jobs.context import FolderContext
from atelier.server.batching import Request, StepLoop
from atelier.server.weights import Variant
from atelier.trainer.worker import execute as train_job
from atelier.v1 import compiler_pb2, trainer_pb2

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]
LEAST_PSNR = 30.0
"""Decibels: half precision against fp32, on another device."""
RUNTIME_ALONE = """
import sys, torch
torch.ops.load_library(sys.argv[1])
module = torch.jit.load(sys.argv[2])
rows = torch.load(sys.argv[3], weights_only=True)
torch.save(module(*(tensor.cuda() for tensor in rows)).cpu(), sys.argv[4])
"""


def torch_tensorrt() -> Any:
    try:
        return tensorrt.require()
    except AtelierError as error:
        pytest.skip(error.message)


@pytest.mark.parametrize("backend", [compiler_pb2.BACKEND_INDUCTOR, compiler_pb2.BACKEND_TENSORRT])
def test_an_engine_agrees_with_eager_and_runs_on_this_device_only(tmp_path: Path, backend: compiler_pb2.Backend.ValueType) -> None:
    if backend == compiler_pb2.BACKEND_TENSORRT:
        torch_tensorrt()
    context = FolderContext(tmp_path)
    model = context.add(Kind.MODEL, base_model.folder())
    profile = compiler_pb2.ShapeProfile(batch_sizes=[2])
    compile_job(compiler_pb2.CompileRequest(model=model, backend=backend, profile=profile), context)
    artifact = context.artifact(context.outputs["engine"])
    manifest = EngineManifest.from_metadata(artifact.manifest.metadata)
    assert manifest.fingerprint.device == "cuda" and manifest.backend in (Backend.INDUCTOR, Backend.TENSORRT)
    engines.load(artifact.folder, manifest=manifest, fingerprint=detect(), device="cuda")
    other = replace(detect(), product="NVIDIA-OTHER")
    with pytest.raises(AtelierError) as refused:
        engines.load(artifact.folder, manifest=manifest, fingerprint=other, device="cuda")
    assert refused.value.status is Status.FAILED_PRECONDITION


def test_torchscript_of_tensorrt_needs_its_runtime_alone(tmp_path: Path) -> None:
    runtime = Path(torch_tensorrt().__file__).parent / "lib" / "libtorchtrt_runtime.so"
    libraries = Path(importlib.import_module("tensorrt_libs").__file__ or "").parent
    context = FolderContext(tmp_path)
    request = compiler_pb2.CompileRequest(
        model=context.add(Kind.MODEL, base_model.folder()),
        backend=compiler_pb2.BACKEND_TENSORRT,
        precision=compiler_pb2.ENGINE_PRECISION_FP16,
        output=compiler_pb2.COMPILE_OUTPUT_TORCHSCRIPT,
    )
    compile_job(request, context)
    artifact = context.artifact(context.outputs["torchscript"])
    shapes, dtype = artifact.manifest.metadata["optimized_shapes"], torch.float16
    rows = (
        torch.randn(shapes["sample"], dtype=dtype),
        torch.full(shapes["timesteps"], 500.0),
        torch.randn(shapes["encoder_hidden_states"], dtype=dtype),
    )
    torch.save(rows, tmp_path / "rows.pt")
    paths = [runtime, artifact.folder / "optimized_module.pt", tmp_path / "rows.pt", tmp_path / "answer.pt"]
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    subprocess.run([sys.executable, "-c", RUNTIME_ALONE, *map(str, paths)], check=True, env=environment)
    with torch.no_grad():
        expected = load_unet(base_model.folder())(*(tensor.float() for tensor in rows))[0]
    assert relative_l2(torch.load(tmp_path / "answer.pt"), expected) < BOUNDS[Precision.FP16]


def test_a_run_in_fp16_learns(tmp_path: Path) -> None:
    context = FolderContext(tmp_path)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (128, 128), (200, 40, 90)).save(tmp_path / "pictures" / "0.png")
    request = trainer_pb2.TrainRequest(
        method=trainer_pb2.METHOD_DREAMBOOTH_LORA,
        pretrained_model_name_or_path=context.add(Kind.MODEL, base_model.folder()),
        instance_data_dir=context.add(Kind.DATASET, tmp_path / "pictures"),
        instance_prompt="a sks emoji",
        resolution=128,
        train_batch_size=4,
        max_train_steps=60,
        learning_rate=1e-3,
        lr_warmup_steps=0,
        mixed_precision="fp16",
        seed=0,
    )
    train_job(request, context)
    losses = [event["loss"] for event in context.events if event.get("phase") == "training"]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


def test_the_step_loop_draws_the_picture_that_the_cpu_draws() -> None:
    pictures = [_draw(device) for device in ("cpu", "cuda")]
    error = float(np.mean((pictures[0] - pictures[1]) ** 2))
    assert 10 * np.log10(255**2 / max(error, 1e-12)) > LEAST_PSNR


def _draw(device: str) -> np.ndarray:
    variant = Variant("base", load_model(base_model.folder(), device=torch.device(device)))
    done: queue.Queue[bytes | Exception | None] = queue.Queue()
    loop = StepLoop(device=device)
    loop.start()
    request = Request(
        weights=variant, prompt="a noto emoji of a fox", negative_prompt="", width=128, height=128, num_steps=20, guidance_scale=5.0,
        sampler="EULER", seed=3, count=1, preview_steps=0, on_progress=lambda *_: None, on_picture=lambda _, png, __: done.put(png),
        on_end=lambda error: done.put(error),
    )  # fmt: skip
    loop.submit(request)
    png = done.get(timeout=120)
    loop.stop()
    assert isinstance(png, bytes), png
    return np.asarray(Image.open(io.BytesIO(png)), dtype=np.float64)
