"""What a job made, as files of this machine: where the training scripts would have written it."""

from __future__ import annotations

import filecmp
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from atelier.client.client import Client
from atelier.client.job_service import outputs
from atelier.errors import invalid_field
from atelier.v1 import job_pb2

RESULTS = ("lora", "model")
NOTE = "atelier.json"
"""A file in the output folder that says which job writes there, so that it can be watched and resumed by the folder alone."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Note:
    """What `NOTE` holds: the job, and where its class pictures go (empty: nowhere)."""

    job: str
    class_data_dir: str = ""

    def write(self, folder: Path) -> None:
        """Leaves the note in the output folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NOTE).write_text(json.dumps({"job": self.job, "class_data_dir": self.class_data_dir}, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Note | None:
        """The note of an output folder, if there is one. Raises INVALID_ARGUMENT for one that says nothing."""
        path = folder / NOTE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text())
            return cls(job=content["job"], class_data_dir=content["class_data_dir"])
        except (ValueError, KeyError, TypeError) as error:
            raise invalid_field("--output_dir", f"{path} names no job: move that file away, and name the job itself") from error


def fetch_training(client: Client, job: job_pb2.Job, folder: Path, *, logging_dir: str = "logs", progress: Progress | None = None) -> None:
    """Writes a run's result and its TensorBoard events into the output folder, as the scripts do."""
    made = outputs(job)
    for role in RESULTS:
        if role in made:
            client.artifacts.download(made[role], folder, progress=progress)
    if "run" in made:
        record = client.artifacts.get(made["run"])
        for file in record.files:
            if file.path.startswith("logs/"):
                target = folder / logging_dir / file.path.removeprefix("logs/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(client.artifacts.read(record.name, file.path))


def fetch_class_pictures(client: Client, job: job_pb2.Job, folder: Path) -> int:
    """Adds the class pictures that the job made to a folder; says how many. What is there is left as it is."""
    made = outputs(job).get("class_pictures")
    if made is None:
        return 0
    added = 0
    with tempfile.TemporaryDirectory() as scratch:
        client.artifacts.download(made, Path(scratch))
        for path in sorted(Path(scratch).iterdir()):
            added += _add(path, folder)
    return added


def fetch_file(client: Client, artifact: str, target: Path, *, progress: Progress | None = None) -> Path:
    """Writes an artifact to where people asked for: its one tensor file as `target` when that is named as a file, else into the folder.

    Raises INVALID_ARGUMENT when a file is named and there are several.
    """
    if target.suffix != ".safetensors":
        client.artifacts.download(artifact, target, progress=progress)
        return target
    tensors = [file.path for file in client.artifacts.get(artifact).files if file.path.endswith(target.suffix)]
    if len(tensors) != 1:
        sentence = f"{target} cannot hold all of {artifact}: name a folder, or fetch it with `atelier artifacts download {artifact} DIR`"
        raise invalid_field("--output", sentence)
    with tempfile.TemporaryDirectory(dir=_existing(target.parent)) as scratch:
        client.artifacts.download(artifact, Path(scratch), progress=progress)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(scratch) / tensors[0], target)
    return target


def _add(path: Path, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    number = 1
    while target.exists():
        if filecmp.cmp(path, target, shallow=False):
            return 0
        target = folder / f"{path.stem}-{number}{path.suffix}"
        number += 1
    shutil.copyfile(path, target)
    return 1


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
