"""What needs a CUDA device: an engine of each backend, a run in fp16, and the step loop on the device."""

from __future__ import annotations

import io
import queue
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atelier import base_model
from atelier.artifacts.manifest import Kind
from atelier.compiler.worker import execute as compile_job
from atelier.engines import engine as engines
from atelier.engines.detect import detect
from atelier.engines.manifest import Backend, EngineManifest
from atelier.errors import AtelierError, Status
from atelier.graphs.model import load_model
from atelier.jobs.context import FolderContext
from atelier.server.batching import Request, StepLoop
from atelier.server.weights import Variant
from atelier.trainer.worker import execute as train_job
from atelier.v1 import compiler_pb2, trainer_pb2

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]
LEAST_PSNR = 30.0
"""Decibels: half precision against fp32, on another device."""


@pytest.mark.parametrize("backend", [compiler_pb2.BACKEND_INDUCTOR, compiler_pb2.BACKEND_TENSORRT])
def test_an_engine_agrees_with_eager_and_runs_on_this_device_only(tmp_path: Path, backend: compiler_pb2.Backend.ValueType) -> None:
    if backend == compiler_pb2.BACKEND_TENSORRT:
        pytest.importorskip("torch_tensorrt")
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
