"""What a training request is answered with, before any worker runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from atelier.artifacts.catalog import Catalog
from atelier.artifacts.manifest import Kind, Manifest, describe_folder
from atelier.artifacts.store import Store
from atelier.errors import AtelierError
from atelier.formats.single_file import from_diffusers
from atelier.graphs.random_model import write_random_model
from atelier.jobs.ledger import JobLedger
from atelier.jobs.submission import Submission
from atelier.ledger import Database
from atelier.migrations import migrate
from atelier.trainer.servicer import TrainerServicer
from atelier.v1 import job_pb2, trainer_pb2

Train = Callable[..., job_pb2.Job]


def commit(catalog: Catalog, kind: Kind, folder: Path, tag: str) -> None:
    files = describe_folder(folder)
    for file in files:
        catalog.store.put_blob(folder / file.path, file)
    catalog.commit(Manifest(kind=kind, files=files), tags=[tag])


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Calls Train with validate_only."""
    database = Database(f"sqlite:///{tmp_path}/ledger.db")
    migrate(database)
    catalog, ledger = Catalog(store=Store.open(f"file://{tmp_path}/store"), database=database), JobLedger(database)
    write_random_model(tmp_path / "model")
    commit(catalog, Kind.MODEL, tmp_path / "model", "model")
    (tmp_path / "single").mkdir()
    from_diffusers(tmp_path / "model", tmp_path / "single" / "model.safetensors")
    commit(catalog, Kind.SINGLE_FILE, tmp_path / "single", "single")
    for name, count in (("subject", 3), ("class", 4)):
        (tmp_path / name).mkdir()
        for index in range(count):
            Image.new("RGB", (64, 64), (40 * index, 0, 0)).save(tmp_path / name / f"{index}.png")
        commit(catalog, Kind.DATASET, tmp_path / name, name)
    submission = Submission(ledger=ledger, service="trainer", wake=lambda: None)
    servicer = TrainerServicer(submission=submission, catalog=catalog, ledger=ledger, pools={"local"})

    def call(**fields: object) -> job_pb2.Job:
        values = {
            "method": trainer_pb2.METHOD_DREAMBOOTH, "pretrained_model_name_or_path": "model", "instance_data_dir": "subject",
            "instance_prompt": "a sks emoji", "validate_only": True, "resolution": 64,
        }  # fmt: skip
        return asyncio.run(servicer.Train(trainer_pb2.TrainRequest(**{**values, **fields}), None))  # type: ignore[arg-type]

    return call


def test_the_plan_tells_steps_pictures_and_memory(train: Train) -> None:
    plan = train(with_prior_preservation=True, class_prompt="an emoji", class_data_dir="class", num_class_images=6, train_batch_size=1).plan
    assert plan[0].startswith("DREAMBOOTH: 6 steps of 1 pictures at 64 px")
    assert list(plan[1:3]) == ["3 pictures of the subject", "4 class pictures are there, 2 will be made with the base model"]
    assert plan[3].startswith("about 0.") and plan[3].endswith("GiB of memory at the peak (estimated)")


def test_of_class_pictures_no_more_count_than_were_asked_for(train: Train) -> None:
    plan = train(with_prior_preservation=True, class_prompt="an emoji", class_data_dir="class", num_class_images=2, train_batch_size=1).plan
    assert plan[0].startswith("DREAMBOOTH: 3 steps")  # a pass over the subject's three
    assert plan[2] == "2 class pictures are there, 0 will be made with the base model"


def test_a_single_file_needs_as_much_memory_as_the_model_that_it_holds(train: Train) -> None:
    estimates = [
        [line for line in train(pretrained_model_name_or_path=name, train_batch_size=64).plan if "memory" in line]
        for name in ("model", "single")
    ]
    assert len(estimates[0]) == 1 and estimates[0] == estimates[1]


def test_class_pictures_without_prior_preservation_are_one_warning(train: Train) -> None:
    plan = train(class_prompt="an emoji", class_data_dir="class").plan
    assert [line for line in plan if "warning" in line] == [
        "warning: class_data_dir, class_prompt: ignored without with_prior_preservation"
    ]


def test_everything_that_is_wrong_is_named_at_once(train: Train) -> None:
    with pytest.raises(AtelierError) as caught:
        train(resume_from_checkpoint="jobs/none", instance_data_dir="model", max_train_steps=0, pool="pools/moon")
    fields = {violation.field for violation in caught.value.violations}
    assert fields == {"resume_from_checkpoint", "instance_data_dir", "max_train_steps", "pool"}
