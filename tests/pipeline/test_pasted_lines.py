"""Lines from people's notes, as they stand but for folders and model, where they run also resolution and steps: no server, one command."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

DREAMBOOTH = """atelier train dreambooth --pretrained_model_name_or_path=./stable-diffusion-v1-5 --instance_data_dir=./baby
    --class_data_dir=./class --output_dir=./out --with_prior_preservation --prior_loss_weight=1.0 --mixed_precision=fp16
    --instance_prompt="a photo of az baby" --class_prompt="a photo of baby" --resolution=512 --train_batch_size=1
    --gradient_accumulation_steps=1 --learning_rate=5e-6 --lr_scheduler=constant --lr_warmup_steps=0 --num_class_images=200
    --max_train_steps=800"""
LORA = """atelier train dreambooth-lora --pretrained_model_name_or_path=./stable-diffusion-v1-5 --instance_data_dir=./baby
    --class_data_dir=./class --output_dir=./out --mixed_precision=fp16 --instance_prompt="a photo of az baby"
    --class_prompt="a photo of baby" --resolution=512 --train_batch_size=1 --gradient_accumulation_steps=1 --checkpointing_steps=100
    --learning_rate=1e-4 --report_to="wandb" --lr_scheduler="constant" --lr_warmup_steps=0 --max_train_steps=1000
    --validation_prompt="a photo of az baby in a bucket" --validation_epochs=50 --seed="0" --push_to_hub"""
SMALL = {"resolution": "128", "max_train_steps": "2"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pictures of the subject, and 198 of the class."""
    for name, count in (("baby", 3), ("class", 198)):
        (tmp_path / name).mkdir()
        for index in range(count):
            Image.new("RGB", (128, 128), (index, 90, 255 - index)).save(tmp_path / name / f"{index}.png")
    return tmp_path


def changed(line: str, root: Path, **values: str) -> list[str]:
    """The line's words with folders, model and `values` in the place of its own."""
    folders = {"instance_data_dir": "baby", "class_data_dir": "class", "output_dir": "out"}
    values |= {"pretrained_model_name_or_path": "base"} | {name: str(root / folder) for name, folder in folders.items()}
    words = []
    for word in shlex.split(line):
        flag, _, _ = word.partition("=")
        words.append(f"{flag}={values.pop(flag.removeprefix('--'))}" if flag.removeprefix("--") in values else word)
    assert not values, f"not in the line: {values}"
    return words


def run(root: Path, words: list[str]) -> str:
    command = [sys.executable, "-m", "atelier.cli", "--data", str(root / "data"), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_dreambooth_line_trains_and_makes_the_two_class_pictures_that_are_missing(root: Path) -> None:
    said = run(root, changed(DREAMBOOTH, root, **SMALL))
    assert said.count("cannot train in fp16") == 1
    assert "198 class pictures are there, 2 will be made" in said
    assert len(list((root / "class").iterdir())) == 200
    assert (root / "out" / "model_index.json").exists()
    assert (root / "out" / "unet" / "diffusion_pytorch_model.safetensors").exists()
    assert list((root / "out" / "logs" / "dreambooth").glob("events.out.tfevents.*"))


def test_the_lora_line_trains_and_ignores_the_class_with_one_warning(root: Path) -> None:
    said = run(root, changed(LORA, root, **SMALL))
    assert said.count("ignored without --with_prior_preservation") == 1
    assert (root / "out" / "pytorch_lora_weights.safetensors").exists()
    assert list((root / "out" / "logs" / "dreambooth-lora").glob("events.out.tfevents.*"))
    assert len(list((root / "out" / "samples").glob("000002-*.png"))) == 4
    assert len(list((root / "class").iterdir())) == 198


@pytest.mark.parametrize(("line", "steps"), [(DREAMBOOTH, 800), (LORA, 1000)])
def test_with_only_folders_and_model_changed_the_plan_is_shown(root: Path, line: str, steps: int) -> None:
    said = run(root, [*changed(line, root), "--validate-only"])
    assert f"{steps} steps of 1 picture" in said and "512 px" in said and "GiB of memory at the peak" in said
    assert not (root / "out").exists()
