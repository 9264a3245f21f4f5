"""Runs on a tiny random model, through the worker's own entry and a context over a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from atelier.artifacts.manifest import Kind
from atelier.jobs.context import FolderContext
from atelier.v1 import trainer_pb2

LORA, FULL = trainer_pb2.METHOD_DREAMBOOTH_LORA, trainer_pb2.METHOD_DREAMBOOTH


def prepare(root: Path, base: Path, **fields: object) -> tuple[FolderContext, trainer_pb2.TrainRequest]:
    context = FolderContext(root)
    pictures = root / "pictures"
    pictures.mkdir(exist_ok=True)
    for index in range(3):
        image = Image.new("RGB", (64 + 32 * index, 64), (80 * index, 40, 200))
        image.paste("white", (10, 10, 30 + index, 30))
        image.save(pictures / f"{index}.png")
    request = trainer_pb2.TrainRequest(
        method=LORA,
        pretrained_model_name_or_path=context.add(Kind.MODEL, base),
        instance_data_dir=context.add(Kind.DATASET, pictures),
        instance_prompt="a sks emoji",
        resolution=64,
        train_batch_size=2,
        max_train_steps=6,
        checkpointing_steps=2,
        learning_rate=1e-3,
        lr_warmup_steps=0,
        seed=1,
    )
    for name, value in fields.items():
        setattr(request, name, value)
    return context, request


def result(context: FolderContext, role: str, file: str) -> dict[str, torch.Tensor]:
    return load_file(context.artifact(context.outputs[role]).folder / file)


PRIOR = {"with_prior_preservation": True, "class_prompt": "an emoji", "num_class_images": 3, "class_inference_steps": 2}
