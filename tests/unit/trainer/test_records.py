"""What a run leaves: checkpoints, a record that is whole whatever happened, earlier checkpoints as results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import FULL, prepare, result

from atelier.jobs.context import FolderContext, Preempted
from atelier.trainer.worker import execute


def test_an_earlier_checkpoint_is_promoted(tmp_path: Path, base: Path) -> None:
    context, request = prepare(tmp_path, base, checkpoints_total_limit=10)
    execute(request, context)
    promoted = FolderContext(tmp_path, job="jobs/promoted")
    request.resume_from_checkpoint, request.max_train_steps = "jobs/local/checkpoint-2", 2
    execute(request, promoted)
    short, request = prepare(tmp_path / "short", base, max_train_steps=2)
    execute(request, short)
    one, other = (result(c, "lora", "pytorch_lora_weights.safetensors") for c in (promoted, short))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any("phase" in event for event in promoted.events)  # nothing is computed again
    assert recorded(promoted, "losses.csv") == recorded(short, "losses.csv")
    facts = [c.artifact(c.outputs["lora"]).manifest.metadata for c in (promoted, short)]
    assert facts[0] == facts[1]


def test_full_state_is_kept_of_the_last_two_while_it_runs_and_of_the_last_when_it_has_ended(tmp_path: Path, base: Path) -> None:
    context, request = prepare(tmp_path, base)
    context.preempt_at_step = 5
    with pytest.raises(Preempted):
        execute(request, context)
    assert kept(tmp_path) == [(2, False), (4, True), (5, True)]
    execute(request, FolderContext(tmp_path))
    assert kept(tmp_path) == [(2, False), (4, False), (5, False), (6, True)]


def test_checkpoints_of_whole_models_are_limited(tmp_path: Path, base: Path) -> None:
    context, request = prepare(tmp_path, base, method=FULL, max_train_steps=3, checkpointing_steps=1)
    execute(request, context)
    assert kept(tmp_path) == [(2, False), (3, True)]


def kept(root: Path) -> list[tuple[int, bool]]:
    """Steps whose weights are there, and whether the full state is."""
    folders = sorted((root / "checkpoints" / "local").iterdir())
    assert all((folder / "weights" / "trainable.safetensors").exists() for folder in folders)
    return [(int(folder.name), (folder / "optimizer.safetensors").exists()) for folder in folders]


def recorded(context: FolderContext, file: str) -> str:
    return (context.artifact(context.outputs["run"]).folder / file).read_text()


def test_the_record_is_whole_after_an_interruption(tmp_path: Path, base: Path) -> None:
    extra = {"validation_prompt": "a sks emoji", "validation_epochs": 1, "num_validation_images": 1, "mixed_precision": "fp16"}
    for folder, stop in (("whole", None), ("cut", 5)):
        context, request = prepare(tmp_path / folder, base, **extra)
        context.preempt_at_step = stop
        if stop:
            with pytest.raises(Preempted):
                execute(request, context)
            shutil.rmtree(tmp_path / folder / "work")  # an attempt's folder ends with it
            context = FolderContext(tmp_path / folder)
        execute(request, context)
        files = [file.path for file in context.artifact(context.outputs["run"]).manifest.files]
        assert [file for file in files if "samples" in file] == [f"samples/{step:06d}-0.png" for step in (2, 4, 6)]
        assert len(recorded(context, "losses.csv").splitlines()) == 1 + 6
        assert scalars(context) == [1, 2, 3, 4, 5, 6]
        said = json.loads(recorded(context, "facts.json"))["warnings"]
        assert len([sentence for sentence in said if "cannot train in fp16" in sentence]) == 1


def scalars(context: FolderContext) -> list[int]:
    """Steps of the loss in the TensorBoard events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(context.artifact(context.outputs["run"]).folder / "logs" / "dreambooth-lora"))
    accumulator.Reload()
    assert accumulator.Tags()["images"]
    return [event.step for event in accumulator.Scalars("loss")]


def test_a_worker_that_dies_after_its_last_step_has_nothing_left_to_train(tmp_path: Path, base: Path) -> None:
    context, request = prepare(tmp_path, base)
    execute(request, context)
    again = FolderContext(tmp_path)
    execute(request, again)
    one, other = (result(c, "lora", "pytorch_lora_weights.safetensors") for c in (again, context))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert recorded(again, "losses.csv") == recorded(context, "losses.csv")
    assert not any("phase" in event for event in again.events)
