"""Compile once, train every fine-tune: on a tiny model, which still takes a C++ compiler minutes."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath

import pytest
from PIL import Image

from atelier.artifacts.manifest import Kind
from atelier.graphs.random_model import write_random_model
from atelier.jobs.context import FolderContext, Preempted
from atelier.trainer.checkpoint import read_progress
from atelier.trainer.compilation import ARCHIVE
from atelier.trainer.worker import execute
from atelier.v1 import trainer_pb2

NOW, AUTO, NEVER = trainer_pb2.TRAIN_COMPILE_NOW, trainer_pb2.TRAIN_COMPILE_AUTO, trainer_pb2.TRAIN_COMPILE_NEVER


def run(root: Path, job: str, colour: str, compile_: trainer_pb2.TrainCompile.ValueType) -> FolderContext:
    """A run of its own over the artifacts of `root`."""
    context = FolderContext(root, job=f"jobs/{job}")
    context.workdir = context.workdir / job
    context.workdir.mkdir()
    train(context, root, colour, compile_, max_train_steps=2)
    return context


def train(
    context: FolderContext, root: Path, colour: str, compile_: trainer_pb2.TrainCompile.ValueType, *, max_train_steps: int,
    resume_from_checkpoint: str = "",
) -> None:  # fmt: skip
    (root / colour).mkdir()
    Image.new("RGB", (64, 64), colour).save(root / colour / "0.png")
    request = trainer_pb2.TrainRequest(
        method=trainer_pb2.METHOD_DREAMBOOTH_LORA,
        pretrained_model_name_or_path=context.add(Kind.MODEL, root / "base"),
        instance_data_dir=context.add(Kind.DATASET, root / colour),
        instance_prompt="a sks emoji",
        resolution=64,
        train_batch_size=1,
        lr_warmup_steps=0,
        rank=2,
        seed=1,
        compile=compile_,
        max_train_steps=max_train_steps,
        resume_from_checkpoint=resume_from_checkpoint,
    )
    execute(request, context)


def said(context: FolderContext) -> str:
    return "\n".join(str(event["message"]) for event in context.events if "message" in event)


def compiled(context: FolderContext) -> object:
    return context.artifact(context.outputs["lora"]).manifest.metadata["compiled"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_a_training_engine_serves_the_next_fine_tune(tmp_path: Path) -> None:
    write_random_model(tmp_path / "base")
    first = run(tmp_path, "first", "red", NOW)
    engine = first.artifact(first.outputs["training_engine"])
    assert engine.manifest.kind is Kind.TRAINING_ENGINE
    with tarfile.open(engine.folder / ARCHIVE) as archive:
        kept = {PurePosixPath(name).name for name in archive.getnames() if name.endswith(".so")}
    # It is kept after the first step; later ones compile nothing.
    assert kept == {path.name for path in (first.workdir / "inductor").rglob("*.so")} != set()
    second = run(tmp_path, "second", "blue", AUTO)
    assert "training with a compiled forward and backward" in said(second)
    assert "training_engine" not in second.outputs
    third = run(tmp_path, "third", "green", NEVER)
    assert [compiled(context) for context in (first, second, third)] == [True, True, False]


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_a_long_run_without_a_training_engine_is_told_that_compiling_would_pay(tmp_path: Path) -> None:
    write_random_model(tmp_path / "base")
    context = FolderContext(tmp_path, job="jobs/long", preempt_at_step=3)
    with pytest.raises(Preempted):
        train(context, tmp_path, "red", AUTO, max_train_steps=5000)
    assert "--compile now would pay" in said(context)


def test_a_run_that_goes_on_is_computed_as_the_one_before(tmp_path: Path) -> None:
    write_random_model(tmp_path / "base")
    context = FolderContext(tmp_path, job="jobs/eager")
    train(context, tmp_path, "red", NEVER, max_train_steps=1)
    checkpoint = context.read_checkpoint()
    assert checkpoint is not None and read_progress(checkpoint[1]).facts["compiled"] is False
    longer = FolderContext(tmp_path, job="jobs/longer", preempt_at_step=2)
    with pytest.raises(Preempted):
        train(longer, tmp_path, "blue", AUTO, max_train_steps=2000, resume_from_checkpoint="jobs/eager")
    assert "would pay" not in said(longer) and "goes on at step 1" in said(longer) and "compiled" not in said(longer)
