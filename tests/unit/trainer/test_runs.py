"""Whole runs on a tiny random model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny_runs import FULL, LORA, PRIOR, prepare, result

from atelier.artifacts.manifest import Kind
from atelier.errors import AtelierError
from atelier.graphs.model import load_model
from atelier.jobs.context import FolderContext, Preempted
from atelier.trainer import dreambooth_lora
from atelier.trainer.requests import to_spec
from atelier.trainer.worker import execute
from atelier.v1 import trainer_pb2


@pytest.mark.parametrize(
    ("method", "role", "file", "extra"),
    [
        (LORA, "lora", "pytorch_lora_weights.safetensors", {"rank": 2, "lora_dropout": 0.1, "ema_decay": 0.9}),
        (FULL, "model", "unet/diffusion_pytorch_model.safetensors", {"snr_gamma": 5.0, "lr_scheduler": "cosine", **PRIOR}),
    ],
)
def test_a_run_that_made_room_ends_bit_for_bit_as_one_that_did_not(
    tmp_path: Path, base: Path, method: int, role: str, file: str, extra: dict[str, object]
) -> None:
    context, request = prepare(tmp_path / "whole", base, method=method, **extra)
    execute(request, context)
    whole = result(context, role, file)

    context, request = prepare(tmp_path / "cut", base, method=method, **extra)
    context.preempt_at_step = 3
    class_pictures = extra.get("num_class_images")
    if class_pictures:  # the class pictures' progress counts to 3 too: let those pass
        context.preempt_at_step = 4
    with pytest.raises(Preempted):
        execute(request, context)
    assert context.checkpoints()
    again = FolderContext(tmp_path / "cut")
    execute(request, again)
    assert any("goes on at step" in str(event.get("message")) for event in again.events)
    resumed = result(again, role, file)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_finished_run_goes_on_with_more_steps_and_equals_one_long_run(tmp_path: Path, base: Path) -> None:
    context, request = prepare(tmp_path, base)
    execute(request, context)
    longer = FolderContext(tmp_path, job="jobs/longer")
    more = trainer_pb2.TrainRequest()
    more.CopyFrom(request)
    more.max_train_steps, more.resume_from_checkpoint = 9, "jobs/local"
    execute(more, longer)
    straight, request = prepare(tmp_path / "straight", base, max_train_steps=9)
    execute(request, straight)
    one, other = (result(c, "lora", "pytorch_lora_weights.safetensors") for c in (longer, straight))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_goes_on_with_other_threads_says_so(tmp_path: Path, base: Path) -> None:
    context, request = prepare(tmp_path, base)
    context.preempt_at_step = 3
    with pytest.raises(Preempted):
        execute(request, context)
    again, threads = FolderContext(tmp_path), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        execute(request, again)
    finally:
        torch.set_num_threads(threads)
    warnings = [str(event["message"]) for event in again.events if event.get("level") == "warning"]
    assert warnings == [f"goes on with threads {threads + 1} instead of {threads}: not bit for bit as without the interruption"]


def test_a_checkpoint_of_another_rank_is_refused(tmp_path: Path, base: Path) -> None:
    context, request = prepare(tmp_path, base, rank=2)
    execute(request, context)
    request.resume_from_checkpoint, request.rank, request.max_train_steps = "jobs/local", 4, 8
    with pytest.raises(AtelierError, match=r"resume_from_checkpoint: .*another rank"):
        execute(request, FolderContext(tmp_path, job="jobs/other"))


def test_a_loss_that_is_no_number_is_one_clear_error(tmp_path: Path, base: Path) -> None:
    context, request = prepare(tmp_path, base, learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(AtelierError, match="lower learning_rate"):
        execute(request, context)


def test_class_pictures_are_made_once_and_only_those_that_are_missing(tmp_path: Path, base: Path) -> None:
    context, request = prepare(tmp_path, base, **PRIOR, max_train_steps=1)
    execute(request, context)
    made = context.outputs["class_pictures"]
    assert len(context.artifact(made).manifest.files) == 3
    again = FolderContext(tmp_path)
    again.job = "jobs/again"
    execute(request, again)
    assert again.outputs["class_pictures"] == made
    assert not [event for event in again.events if event.get("phase") == "class pictures"]
    given = FolderContext(tmp_path, job="jobs/given")
    request.class_data_dir, request.num_class_images = made, 5
    execute(request, given)
    new = given.artifact(given.outputs["class_pictures"]).manifest.files
    assert [file.path for file in new] == ["class-1-00003.png", "class-1-00004.png"]
    there = {file.sha256 for file in given.artifact(made).manifest.files}
    assert not there & {file.sha256 for file in new}  # the seed's next pictures, not its first once more


def test_of_more_class_pictures_than_were_asked_for_the_first_ones_are_used(tmp_path: Path, base: Path) -> None:
    context, request = prepare(tmp_path, base, **PRIOR, max_train_steps=1)
    execute(request, context)
    request.class_data_dir, request.num_class_images = context.outputs["class_pictures"], 2
    fewer = FolderContext(tmp_path, job="jobs/fewer")
    execute(request, fewer)
    phases = [event for event in fewer.events if event.get("phase") == "latents of class pictures"]
    assert len(phases) == 2 and "class_pictures" not in fewer.outputs


def test_a_bad_picture_fails_the_job_naming_it(tmp_path: Path, base: Path) -> None:
    context, request = prepare(tmp_path, base)
    (tmp_path / "pictures" / "bad.png").write_text("no picture")
    request.instance_data_dir = context.add(Kind.DATASET, tmp_path / "pictures")
    with pytest.raises(AtelierError, match=r"bad\.png"):
        execute(request, context)


def test_the_lora_loads_in_diffusers_and_changes_the_unet_as_trained(tmp_path: Path, base: Path) -> None:
    from diffusers import StableDiffusionPipeline

    context, request = prepare(tmp_path, base, rank=2, lora_layers="all", lora_alpha=4.0)
    execute(request, context)
    folder = context.artifact(context.outputs["lora"]).folder
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipeline.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    # The trained form: the last checkpoint's weights in peft's own adapters, alpha and all.
    model = load_model(base)
    trainable = dreambooth_lora.prepare(model.unet, to_spec(request)[0])
    found = context.read_checkpoint()
    assert found
    saved = load_file(found[1] / "weights" / "trainable.safetensors")
    with torch.no_grad():
        for name, tensor in saved.items():
            trainable[name].copy_(tensor)
    sample, steps, text = torch.randn(2, 4, 8, 8), torch.tensor([10, 500]), torch.randn(2, 77, 32)
    with torch.no_grad():
        ours = model.unet.eval()(sample, steps, text, return_dict=False)[0]
        theirs = pipeline.unet.eval()(sample, steps, text, return_dict=False)[0]
        plain = load_model(base).unet(sample, steps, text, return_dict=False)[0]
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, plain, atol=1e-4)


@pytest.fixture
def another_precision() -> Iterator[None]:
    """accelerate keeps the precision of a process: a worker has one of its own, and this process another before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("another_precision")
def test_in_16_bit_what_does_not_learn_is_kept_so_and_the_result_is_that_of_autocast_alone(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {"mixed_precision": "bf16", "validation_prompt": "a sks emoji", "validation_epochs": 1, "num_validation_images": 1}
    context, request = prepare(tmp_path / "ours", base, **extra)
    execute(request, context)
    as_masters = dreambooth_lora.prepare
    monkeypatch.setattr(dreambooth_lora, "prepare", lambda unet, spec, dtype: as_masters(unet, spec, torch.float32))
    reference, request = prepare(tmp_path / "reference", base, mixed_precision="bf16")
    execute(request, reference)
    ours, theirs = (result(one, "lora", "pytorch_lora_weights.safetensors") for one in (context, reference))
    assert ours and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    model = load_model(base)
    trainable = as_masters(model.unet, to_spec(request)[0], torch.bfloat16)
    assert {tensor.dtype for tensor in trainable.values()} == {torch.float32}
    kept = {tensor.dtype for tensor in model.unet.parameters() if tensor.ndim > 1 and not tensor.requires_grad}
    assert kept == {torch.bfloat16}
