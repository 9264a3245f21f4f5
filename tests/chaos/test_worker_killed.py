"""A training worker is killed mid-run: the run goes on by itself, and ends with the very bytes of one that nobody disturbed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

LINES = {
    "dreambooth-lora": (
        "pytorch_lora_weights.safetensors",
        "--lora_dropout=0.1 --lr_scheduler=cosine --max_train_steps=40 --checkpointing_steps=10",
    ),
    "dreambooth": (
        "unet/diffusion_pytorch_model.safetensors",
        "--with_prior_preservation --class_prompt=an --num_class_images=2 --class_inference_steps=2 --ema_decay=0.9"
        " --max_train_steps=12 --checkpointing_steps=4",
    ),
}


def train(root: Path, method: str, name: str, more: str) -> list[str]:
    line = f"""--data {root / "data"} train {method} --pretrained_model_name_or_path=base --instance_data_dir={root / "pictures"}
        --output_dir={root / name} --instance_prompt=sks --resolution=64 --train_batch_size=1
        --lr_warmup_steps=0 --seed=3 --compile=never {more}"""
    return [sys.executable, "-m", "atelier.cli", *line.split()]


def kill_worker_after_a_checkpoint(command: psutil.Popen, log: Path) -> None:
    end = time.monotonic() + 120
    while "checkpoint at step" not in log.read_text():
        assert time.monotonic() < end and command.poll() is None, log.read_text()
        time.sleep(0.02)
    workers = [child for child in command.children(recursive=True) if "atelier.trainer" in child.cmdline()]
    assert len(workers) == 1
    workers[0].kill()


@pytest.mark.parametrize("method", LINES)
def test_a_run_whose_worker_is_killed_ends_bit_for_bit_as_one_that_was_not_disturbed(tmp_path: Path, method: str) -> None:
    file, more = LINES[method]
    (tmp_path / "pictures").mkdir()
    for index in range(3):
        Image.new("RGB", (64 + 16 * index, 64), (80 * index, 40, 200)).save(tmp_path / "pictures" / f"{index}.png")
    log = tmp_path / "killed.txt"
    with log.open("wb") as stream:
        command = psutil.Popen(train(tmp_path, method, "killed", more), stdout=stream, stderr=stream)
        kill_worker_after_a_checkpoint(command, log)
        assert command.wait(timeout=200) == 0, log.read_text()
    said = log.read_text()
    assert "signal 9" in said and "goes on at step" in said and "not bit for bit" not in said
    subprocess.run(train(tmp_path, method, "whole", more), check=True, capture_output=True)
    assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
