"""Two processes on one machine train together: gloo, started by torchrun as the launcher does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from google.protobuf import json_format
from PIL import Image
from safetensors.torch import load_file

from atelier.artifacts.manifest import Kind
from atelier.graphs.random_model import write_random_model
from atelier.jobs.context import FolderContext
from atelier.v1 import trainer_pb2

STEPS = 3


def test_two_processes_see_each_other_and_go_on_with_the_mean_of_their_gradients(tmp_path: Path) -> None:
    write_random_model(tmp_path / "base")
    (tmp_path / "pictures").mkdir()
    for index in range(3):
        Image.new("RGB", (64, 64), (80 * index, 40, 200)).save(tmp_path / "pictures" / f"{index}.png")
    context = FolderContext(tmp_path)
    request = trainer_pb2.TrainRequest(
        method=trainer_pb2.METHOD_DREAMBOOTH_LORA,
        pretrained_model_name_or_path=context.add(Kind.MODEL, tmp_path / "base"),
        instance_data_dir=context.add(Kind.DATASET, tmp_path / "pictures"),
        instance_prompt="a sks emoji",
        resolution=64,
        train_batch_size=1,
        max_train_steps=STEPS,
        lr_warmup_steps=0,
        num_processes=2,
        seed=1,
    )
    (tmp_path / "request.json").write_text(json_format.MessageToJson(request, preserving_proto_field_name=True))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, str(Path(__file__).with_name("rank.py")), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for step in range(STEPS):
        # The first number is accelerate's: 1 in both would mean that each had trained alone.
        own, averaged = ([load_file(tmp_path / f"2-{rank}-{step}-{kind}.safetensors") for rank in (0, 1)] for kind in ("own", "averaged"))
        assert any(not torch.equal(own[0][name], own[1][name]) for name in own[0]), "they saw different pictures"
        for name in own[0]:
            assert torch.equal(averaged[0][name], averaged[1][name])
            assert torch.allclose(averaged[0][name], (own[0][name] + own[1][name]) / 2, rtol=1e-5, atol=1e-9)
