"""What people get wrong, through the front door: one clear error each, and nothing left behind."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from atelier import app
from atelier.artifacts.manifest import Kind
from atelier.client import Client
from atelier.errors import AtelierError, Status
from atelier.v1 import compiler_pb2, converter_pb2, job_pb2, trainer_pb2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("atelier")


@pytest.fixture(scope="module")
def client(data: Path) -> Iterator[Client]:
    with app.inside(data) as address, Client(address.target, address.token) as client:
        yield client


@pytest.fixture
def picture(client: Client, tmp_path: Path) -> str:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64), (200, 40, 90)).save(tmp_path / "pictures" / "0.png")
    return client.artifacts.upload(tmp_path / "pictures").name


@pytest.fixture
def train(client: Client, picture: str) -> Callable[..., job_pb2.Job]:
    def call(**fields: Any) -> job_pb2.Job:
        values = {
            "method": trainer_pb2.METHOD_DREAMBOOTH_LORA, "pretrained_model_name_or_path": "base", "instance_data_dir": picture,
            "instance_prompt": "a sks emoji", "resolution": 128, "max_train_steps": 1, "lr_warmup_steps": 0, "validate_only": True,
        }  # fmt: skip
        return client.train(trainer_pb2.TrainRequest(**{**values, **fields}))

    return call


@pytest.fixture
def nothing_left(client: Client, data: Path, picture: str) -> Iterator[None]:
    """The same artifacts, jobs and files before and after."""

    def state() -> tuple[set[str], set[str], set[str]]:
        files = {str(path) for place in ("store", "spool") for path in (data / place).rglob("*") if path.is_file()}
        return {a.name for a in client.artifacts.list()}, {job.name for job in client.jobs.list()}, files

    before = state()
    yield
    assert state() == before


def refused(call: Callable[[], Any], status: Status = Status.INVALID_ARGUMENT) -> AtelierError:
    with pytest.raises(AtelierError) as caught:
        call()
    assert caught.value.status is status, caught.value.message
    assert caught.value.reason
    return caught.value


def fields(error: AtelierError) -> set[str]:
    return {violation.field for violation in error.violations}


@pytest.mark.usefixtures("nothing_left")
def test_a_pickle_named_safetensors_is_told_by_its_content(client: Client, tmp_path: Path) -> None:
    (tmp_path / "lora.safetensors").write_bytes(pickle.dumps({"a": 1}))
    assert "pickle" in refused(lambda: client.artifacts.upload(tmp_path / "lora.safetensors", kind=Kind.LORA)).message
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    refused(lambda: client.artifacts.upload(tmp_path / "model.safetensors", kind=Kind.SINGLE_FILE))


@pytest.mark.usefixtures("nothing_left")
def test_code_is_taken_from_nobody(client: Client, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "engine.pt2", "w") as archive:
        archive.writestr("model/archive_format", "pt2")
        archive.writestr("model/data.pkl", pickle.dumps(1))
    for kind in (Kind.ENGINE, Kind.TORCHSCRIPT, Kind.TRAINING_ENGINE, Kind.MODEL):
        error = refused(lambda kind=kind: client.artifacts.upload(tmp_path / "engine.pt2", kind=kind))  # type: ignore[misc]
        assert error.reason in ("KIND_NOT_UPLOADABLE", "UNSAFE_FORMAT")


@pytest.mark.usefixtures("nothing_left")
def test_a_text_file_is_no_picture(client: Client, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "cat.png").write_text("a cat")
    assert "cat.png" in refused(lambda: client.artifacts.upload(tmp_path / "text", kind=Kind.DATASET)).message


@pytest.mark.usefixtures("nothing_left")
def test_a_dataset_without_pictures_is_refused(client: Client, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(lambda: client.artifacts.upload(tmp_path / "empty", kind=Kind.DATASET)).message


@pytest.mark.usefixtures("nothing_left")
def test_a_training_request_has_all_that_is_wrong_named_at_once(train: Callable[..., job_pb2.Job]) -> None:
    error = refused(
        lambda: train(pretrained_model_name_or_path="nobody", max_train_steps=0, resolution=100, pool="pools/moon", learning_rate=math.nan)
    )
    assert fields(error) == {"pretrained_model_name_or_path", "max_train_steps", "resolution", "pool", "learning_rate"}
    assert "pools/local" in error.message


@pytest.mark.usefixtures("nothing_left")
def test_an_unknown_enum_value_names_those_that_are_known(train: Callable[..., job_pb2.Job]) -> None:
    error = refused(lambda: train(method=77))
    assert "DREAMBOOTH_LORA" in error.message


@pytest.mark.usefixtures("nothing_left")
def test_a_ratio_that_is_no_number_is_refused(client: Client, tmp_path: Path) -> None:
    loras = [converter_pb2.LoraRatio(lora="base", ratio=math.nan)]
    error = refused(lambda: client.merge(converter_pb2.MergeRequest(base="base", loras=loras)))
    assert "loras[0].ratio" in fields(error)


@pytest.mark.usefixtures("nothing_left")
def test_an_engine_for_a_size_that_no_unet_makes_is_refused(client: Client) -> None:
    profile = compiler_pb2.ShapeProfile(width=100, height=128, batch_sizes=[4, 2])
    error = refused(lambda: client.compile(compiler_pb2.CompileRequest(model="base", profile=profile)))
    assert fields(error) == {"profile.width", "profile.batch_sizes"}


def test_a_lora_of_another_architecture_fails_the_merge_with_its_modules(client: Client, tmp_path: Path) -> None:
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{name}.lora_A.weight": torch.zeros(4, 320), f"{name}.lora_B.weight": torch.zeros(320, 4)}, tmp_path / "other.safetensors")
    lora = client.artifacts.upload(tmp_path / "other.safetensors", kind=Kind.LORA).name
    before = {artifact.name for artifact in client.artifacts.list()}
    job = client.merge(converter_pb2.MergeRequest(base="base", loras=[converter_pb2.LoraRatio(lora=lora, ratio=1.0)]))
    error = refused(lambda: client.jobs.wait(job.name))
    assert error.reason == "LORA_MISFIT" and name in error.message
    assert {artifact.name for artifact in client.artifacts.list()} == before


def test_the_same_request_id_is_the_same_job_and_another_body_an_error(client: Client) -> None:
    request = converter_pb2.ConvertRequest(request_id="twice", source="base", to=converter_pb2.FORMAT_SINGLE_FILE)
    first, second = client.convert(request), client.convert(request)
    assert first.name == second.name
    other = converter_pb2.ConvertRequest(request_id="twice", source="base", to=converter_pb2.FORMAT_DIFFUSERS)
    assert refused(lambda: client.convert(other)).status is Status.INVALID_ARGUMENT
    assert client.jobs.wait(first.name).state == job_pb2.JOB_STATE_SUCCEEDED
