"""Command lines of people's notes, as requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_atelier import ended, event, progress
from fake_files import LORA, model, safetensors
from fake_shell import PNG, Shell

from atelier.cli.flags import FIELDS, FOREIGN, fields_of, type_of
from atelier.cli.orders import parameters
from atelier.trainer.spec import DEFAULTS, Method
from atelier.v1 import job_pb2, trainer_pb2

DREAMBOOTH = """train dreambooth --pretrained_model_name_or_path={m}/model --instance_data_dir={m}/baby --class_data_dir={m}/class
    --output_dir={m}/out --with_prior_preservation --prior_loss_weight=1.0 --mixed_precision=fp16 --instance_prompt="a photo of az baby"
    --class_prompt="a photo of baby" --resolution=512 --train_batch_size=1 --gradient_accumulation_steps=1 --learning_rate=5e-6
    --lr_scheduler=constant --lr_warmup_steps=0 --num_class_images=200 --max_train_steps=800"""

LORA_OF_THE_GUIDE = """train dreambooth-lora --pretrained_model_name_or_path={m}/model --instance_data_dir={m}/baby
    --class_data_dir={m}/class --output_dir={m}/out --mixed_precision=fp16 --instance_prompt="a photo of az baby"
    --class_prompt="a photo of baby" --resolution=512 --train_batch_size=1 --gradient_accumulation_steps=1 --checkpointing_steps=100
    --learning_rate=1e-4 --report_to="wandb" --lr_scheduler="constant"
    --lr_warmup_steps=0 --max_train_steps=1000 --validation_prompt="a photo of az baby in a bucket"
    --validation_epochs=50 --seed="0" --push_to_hub"""


@pytest.fixture
def notes(shell: Shell) -> Shell:
    model(shell.folder / "model")
    shell.pictures("baby", 3)
    return shell


def line(shell: Shell, text: str, extra: str = "") -> str:
    return text.format(m=shell.folder) + " " + extra


def short(shell: Shell, model: str) -> str:
    return f"train dreambooth --pretrained_model_name_or_path={model} --instance_data_dir={shell.folder}/baby --instance_prompt=x"


def asked(shell: Shell) -> trainer_pb2.TrainRequest:
    request = shell.fake.requests("Train")[-1]
    assert isinstance(request, trainer_pb2.TrainRequest)
    return request


def test_the_dreambooth_line_of_peoples_notes_becomes_a_request(notes: Shell) -> None:
    notes.pictures("class", 2)
    assert notes(line(notes, DREAMBOOTH, "--validate-only")) == 0
    request = asked(notes)
    for name in ("pretrained_model_name_or_path", "instance_data_dir", "class_data_dir"):
        assert getattr(request, name).startswith("artifacts/")
        request.ClearField(name)
    assert request == trainer_pb2.TrainRequest(
        request_id=request.request_id, validate_only=True, method=trainer_pb2.METHOD_DREAMBOOTH, compile=trainer_pb2.TRAIN_COMPILE_AUTO,
        with_prior_preservation=True, prior_loss_weight=1.0, mixed_precision="fp16", instance_prompt="a photo of az baby",
        class_prompt="a photo of baby", resolution=512, train_batch_size=1, gradient_accumulation_steps=1, learning_rate=5e-6,
        lr_scheduler="constant", lr_warmup_steps=0, num_class_images=200, max_train_steps=800,
    )  # fmt: skip
    assert notes.out == "30 steps\n" and notes.err == ""


def test_the_lora_line_of_the_guide_becomes_a_request_with_warnings(notes: Shell) -> None:
    assert notes(line(notes, LORA_OF_THE_GUIDE, "--validate-only")) == 0
    request = asked(notes)
    for name in ("pretrained_model_name_or_path", "instance_data_dir"):
        request.ClearField(name)
    assert request == trainer_pb2.TrainRequest(
        request_id=request.request_id, validate_only=True, method=trainer_pb2.METHOD_DREAMBOOTH_LORA, mixed_precision="fp16",
        compile=trainer_pb2.TRAIN_COMPILE_AUTO, instance_prompt="a photo of az baby", resolution=512, train_batch_size=1,
        gradient_accumulation_steps=1, checkpointing_steps=100, learning_rate=1e-4, lr_scheduler="constant", lr_warmup_steps=0,
        max_train_steps=1000, validation_prompt="a photo of az baby in a bucket", validation_epochs=50, seed=0,
    )  # fmt: skip
    assert notes.err.splitlines() == [
        "warning: --push_to_hub: no effect: nothing leaves this installation",
        "warning: --report_to: no effect: TensorBoard events are written, and nothing else",
        "warning: --class_data_dir, --class_prompt: ignored without --with_prior_preservation",
    ]


def test_underscores_and_dashes_mean_the_same(notes: Shell) -> None:
    notes(line(notes, DREAMBOOTH, "--validate_only"))
    notes(line(notes, DREAMBOOTH.replace("_", "-").replace("data-dir={m}", "data_dir={m}"), "--validate-only"))
    first, second = notes.fake.requests("Train")
    first.ClearField("request_id"), second.ClearField("request_id")
    assert first == second


def test_values_may_stand_apart(notes: Shell) -> None:
    assert notes(line(notes, DREAMBOOTH, "--validate-only --seed 3 --max-train-steps 30")) == 0
    assert (asked(notes).seed, asked(notes).max_train_steps) == (3, 30)


def test_every_field_of_the_request_has_a_flag() -> None:
    fields = {field.name for field in trainer_pb2.TrainRequest.DESCRIPTOR.fields} - {"request_id", "method", "tags"}
    for method in Method:
        flags = {parameter.name for parameter in parameters(method)}
        assert fields_of(method) == [name for name in FIELDS if name in flags]
        assert {name for name in fields if name in DEFAULTS[method]} <= flags
    assert fields <= {p.name for method in Method for p in parameters(method)}


def test_every_flag_of_the_table_is_a_field() -> None:
    assert {type_of(name) for name in FIELDS} == {str, bool, int, float}
    assert not set(FIELDS) & set(FOREIGN)


def test_an_unknown_flag_is_refused_with_the_closest_one(notes: Shell) -> None:
    assert notes(line(notes, DREAMBOOTH, "--max_trian_steps=3")) == 2
    assert notes.err == "error: there is no flag --max_trian_steps; did you mean --max_train_steps?\n"


def test_a_flag_of_the_other_method_is_refused(notes: Shell) -> None:
    assert notes(line(notes, DREAMBOOTH, "--rank=4")) == 2
    assert "there is no flag --rank" in notes.err


def test_flags_that_would_change_the_result_are_refused_all_at_once(notes: Shell) -> None:
    assert notes(line(notes, DREAMBOOTH, "--train_text_encoder --class_labels_conditioning=timesteps")) == 2
    assert "--train_text_encoder: only the UNet is trained" in notes.err
    assert "--class_labels_conditioning" in notes.err
    assert notes.fake.requests("Train") == []


@pytest.mark.parametrize("name", [name for name, foreign in FOREIGN.items() if not foreign.refused])
def test_flags_without_effect_are_one_warning(notes: Shell, name: str) -> None:
    value = "=other" if FOREIGN[name].value else ""
    assert notes(line(notes, DREAMBOOTH, f"--validate_only --{name}{value}")) == 0
    assert notes.err == f"warning: --{name}: {FOREIGN[name].why}\n"


@pytest.mark.parametrize("flag", ["--report_to=tensorboard", "--local_rank=-1", "--logging_dir=logs"])
def test_what_is_so_anyway_needs_no_word(notes: Shell, flag: str) -> None:
    assert notes(line(notes, DREAMBOOTH, f"--validate_only {flag}")) == 0
    assert notes.err == ""


def test_the_model_on_board_is_called_base(notes: Shell) -> None:
    name = notes.add("model", "base")
    notes(short(notes, "base"))
    assert asked(notes).pretrained_model_name_or_path == name


def test_a_repository_comes_from_this_machines_cache(notes: Shell) -> None:
    root = notes.folder / "hub" / "models--org--sd"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    model(root / "snapshots" / "abc")
    assert notes(short(notes, "org/sd")) == 0
    assert asked(notes).pretrained_model_name_or_path.startswith("artifacts/")


def test_a_repository_that_is_nowhere_is_one_clear_error(notes: Shell) -> None:
    assert notes(short(notes, "org/sd")) == 1
    assert notes.err.count("\n") == 1 and "--allow-download" in notes.err


def test_a_folder_that_is_not_there_is_named(notes: Shell) -> None:
    assert notes(line(notes, DREAMBOOTH.replace("{m}/baby", "{m}/bebe"))) == 1
    assert "--instance_data_dir: there is no file or folder" in notes.err


def test_outputs_are_written_where_the_script_would(notes: Shell) -> None:
    notes.pictures("class", 2)
    made = notes.folder / "made"
    safetensors(made / "lora" / "pytorch_lora_weights.safetensors", LORA)
    (made / "run" / "logs").mkdir(parents=True)
    (made / "run" / "logs" / "events.txt").write_text("loss")
    (made / "run" / "spec.png").write_bytes(PNG)
    (made / "more").mkdir()
    (made / "more" / "0.png").write_bytes(PNG + b"a picture that was made")
    roles = {"lora": "lora", "run": "run", "class_pictures": "more"}
    outputs = [job_pb2.JobOutput(role=role, artifact=notes.add(f"made/{name}", role.replace("_", "-"))) for role, name in roles.items()]
    sample = job_pb2.SamplePicture(step=10, index=1, png=PNG)
    notes.fake.answers["WatchJob"] = [[progress(1, 10, loss=0.5), event(2, sample=sample), ended(outputs=outputs)]]
    line_of_lora = LORA_OF_THE_GUIDE.replace("--push_to_hub", "--with_prior_preservation")
    assert notes(line(notes, line_of_lora)) == 0
    out = notes.folder / "out"
    assert (out / "pytorch_lora_weights.safetensors").exists()
    assert (out / "samples" / "000010-1.png").read_bytes() == PNG
    assert sorted(path.name for path in (notes.folder / "class").iterdir()) == ["0-1.png", "0.png", "1.png"]
    assert json.loads((out / "atelier.json").read_text()) == {"job": "jobs/j1", "class_data_dir": str(notes.folder / "class")}
    assert "training 10/100  loss 0.5000" in notes.err
    assert (out / "logs" / "events.txt").read_text() == "loss"


def test_the_run_of_an_output_folder_can_be_resumed(notes: Shell) -> None:
    notes(line(notes, DREAMBOOTH))
    notes(line(notes, DREAMBOOTH, "--resume_from_checkpoint=latest"))
    assert asked(notes).resume_from_checkpoint == "jobs/j1"
    notes(line(notes, DREAMBOOTH, "--resume_from_checkpoint=checkpoint-500"))
    assert asked(notes).resume_from_checkpoint == "jobs/j1/checkpoint-500"
    notes(line(notes, DREAMBOOTH, "--resume_from_checkpoint=jobs/other/checkpoint-5"))
    assert asked(notes).resume_from_checkpoint == "jobs/other/checkpoint-5"


def test_latest_without_a_run_starts_a_new_one_as_the_script_does(notes: Shell) -> None:
    assert notes(line(notes, DREAMBOOTH, "--resume_from_checkpoint=latest")) == 0
    assert asked(notes).resume_from_checkpoint == "" and "a new one starts" in notes.err


def test_class_pictures_by_artifact_are_not_written_anywhere(notes: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(notes.folder)
    notes.pictures("cats", 2)
    name = notes.add("cats", "cats-before")
    notes(line(notes, DREAMBOOTH.replace("{m}/class", "cats-before")))
    assert asked(notes).class_data_dir == name
    assert not (notes.folder / "cats-before").exists()


def test_promote_asks_for_the_step(shell: Shell) -> None:
    assert shell("train promote jobs/j1 --step 300 --tag best") == 0
    request = shell.fake.requests("Promote")[0]
    assert (request.run, request.step, request.tags) == ("jobs/j1", 300, ["best"])


def test_compile_and_detach(notes: Shell) -> None:
    assert notes(line(notes, DREAMBOOTH, "--compile now --detach")) == 0
    assert asked(notes).compile == trainer_pb2.TRAIN_COMPILE_NOW
    assert notes.fake.requests("WatchJob") == []
    assert "atelier jobs watch jobs/j1" in notes.out


def test_paths_may_be_relative(notes: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(notes.folder)
    assert (
        notes("train dreambooth --pretrained_model_name_or_path=./model --instance_data_dir=baby --instance_prompt=x --output_dir=o") == 0
    )
    assert Path("o/atelier.json").exists()
