"""The main job on a release, as a user of the Python client does it."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from PIL import Image

from atelier.artifacts.manifest import Kind
from atelier.client.client import Client
from atelier.client.job_service import outputs
from atelier.demo import drawings
from atelier.errors import AtelierError
from atelier.v1 import compiler_pb2, converter_pb2, image_pb2, job_pb2, server_pb2, trainer_pb2
from cluster.release import Release


def picture(client: Client, deployment: str, *, patience: float = 60, prompt: str = "a fox emoji", deadline: float = 60) -> Image.Image:
    """A picture, as soon as there is one; `deadline` is that of a call, `patience` how long calls are made again."""
    end = time.monotonic() + patience
    while True:
        try:
            request = image_pb2.GenerateRequest(deployment=deployment, prompt=prompt, steps=4, seed=1)
            (made,) = [part for part in client.generate(request, timeout_seconds=deadline) if isinstance(part, image_pb2.GeneratedImage)]
            return Image.open(io.BytesIO(made.png))
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def octopus(client: Client, folder: Path) -> str:
    """The octopus, uploaded."""
    drawings.write_training_pictures(folder, identifier="sks")
    return client.artifacts.upload(folder, kind=Kind.DATASET, tags=["octopus"]).name


def done(client: Client, release: Release, job: job_pb2.Job) -> dict[str, str]:
    """The outputs of a job that ends well."""
    try:
        return dict(outputs(client.jobs.wait(job.name)))
    except AtelierError as error:
        pytest.fail(f"{error}\n{release.logs()}")


def training(pictures: str, *, steps: int = 6, **more: object) -> trainer_pb2.TrainRequest:
    """A short run on the octopus."""
    return trainer_pb2.TrainRequest(
        method=trainer_pb2.METHOD_DREAMBOOTH_LORA, pretrained_model_name_or_path="base", instance_data_dir=pictures,
        instance_prompt="a sks emoji", resolution=128, train_batch_size=1, max_train_steps=steps, lr_warmup_steps=0, seed=3, **more,
    )  # type: ignore[arg-type]  # fmt: skip


def walk(client: Client, release: Release, pictures: str) -> None:
    """From pictures to a picture, every step as a real Job pod."""
    trained = done(client, release, client.train(training(pictures, steps=20)))
    webui = done(client, release, client.convert(converter_pb2.ConvertRequest(source=trained["lora"], to=converter_pb2.FORMAT_LORA_WEBUI)))
    merge = converter_pb2.MergeRequest(base="base", loras=[converter_pb2.LoraRatio(lora=webui["lora"], ratio=1.0)])
    model = done(client, release, client.merge(merge))["model"]
    profile = compiler_pb2.ShapeProfile(batch_sizes=[2])
    done(client, release, client.compile(compiler_pb2.CompileRequest(model=model, profile=profile)))
    client.deployments.create("az", server_pb2.Deployment(model=model, serve_eager=False))
    deployment = list(client.deployments.wait("az"))[-1]
    assert picture(client, "az", prompt="a sks emoji").size == (128, 128)
    assert deployment.engine_artifact  # this one, or the one that `base` was compiled to: its graph is the same
    client.deployments.delete("az")
