"""Lines from people's notes, as they stand but for folders, model, resolution and steps: no server, one command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

DREAMBOOTH = """train dreambooth --pretrained_model_name_or_path={model} --instance_data_dir={root}/baby --class_data_dir={root}/class
    --output_dir={root}/out --with_prior_preservation --prior_loss_weight=1.0 --mixed_precision=fp16 --resolution={resolution}
    --train_batch_size=1 --gradient_accumulation_steps=1 --learning_rate=5e-6 --lr_scheduler=constant --lr_warmup_steps=0
    --num_class_images=200 --max_train_steps={steps}"""
LORA = """train dreambooth-lora --pretrained_model_name_or_path={model} --instance_data_dir={root}/baby --class_data_dir={root}/class
    --output_dir={root}/out --mixed_precision=fp16 --resolution={resolution} --train_batch_size=1 --gradient_accumulation_steps=1
    --checkpointing_steps=100 --learning_rate=1e-4 --lr_scheduler=constant --lr_warmup_steps=0 --max_train_steps={steps}
    --validation_epochs=50 --seed=0"""
PROMPTS = ["--instance_prompt=a photo of az baby", "--class_prompt=a photo of baby"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pictures of the subject, and 198 of the class."""
    for name, count in (("baby", 3), ("class", 198)):
        (tmp_path / name).mkdir()
        for index in range(count):
            Image.new("RGB", (128, 128), (index, 90, 255 - index)).save(tmp_path / name / f"{index}.png")
    return tmp_path


def atelier(root: Path, line: str, *more: str) -> str:
    command = [sys.executable, "-m", "atelier.cli", "--data", str(root / "data"), *line.split(), *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_dreambooth_line_trains_and_makes_the_two_class_pictures_that_are_missing(root: Path) -> None:
    said = atelier(root, DREAMBOOTH.format(root=root, model="base", resolution=128, steps=2), *PROMPTS)
    assert "cannot train in fp16" in said
    assert len([path for path in (root / "class").iterdir() if path.suffix == ".png"]) == 200
    assert (root / "out" / "model_index.json").exists()
    assert (root / "out" / "unet" / "diffusion_pytorch_model.safetensors").exists()
    assert list((root / "out" / "logs").rglob("events.out.tfevents.*"))


def test_the_lora_line_trains_and_ignores_the_class_with_one_warning(root: Path) -> None:
    prompt = "--validation_prompt=a photo of az baby in a bucket"
    said = atelier(root, LORA.format(root=root, model="base", resolution=128, steps=2), *PROMPTS, prompt)
    assert said.count("ignored without --with_prior_preservation") == 1
    assert (root / "out" / "pytorch_lora_weights.safetensors").exists()
    assert len(list((root / "class").iterdir())) == 198


@pytest.mark.parametrize("line", [DREAMBOOTH, LORA])
def test_with_only_folders_and_model_changed_the_plan_is_shown(root: Path, line: str) -> None:
    said = atelier(root, line.format(root=root, model="base", resolution=512, steps=800), *PROMPTS, "--validate-only")
    assert "800 steps of 1 picture" in said and "512 px" in said
    assert not (root / "out").exists()
