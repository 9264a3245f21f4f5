"""What a job is given, on this machine's disk: base model, pictures, and class pictures, of which missing ones are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from atelier.artifacts.manifest import Kind, Source
from atelier.errors import invalid_field
from atelier.formats import single_file
from atelier.graphs.model import Model
from atelier.jobs.context import JobContext, LocalArtifact
from atelier.trainer import dataset, pictures
from atelier.trainer.dataset import Picture
from atelier.trainer.record import Record
from atelier.trainer.spec import TrainSpec
from atelier.v1 import trainer_pb2


@dataclass(frozen=True, kw_only=True)
class ClassPictures:
    """The class pictures of a run, and the artifact that stands for them in its lineage."""

    pictures: Sequence[Picture]
    artifact: str


def base_model(name: str, context: JobContext, accelerator: Accelerator) -> LocalArtifact:
    """The base as a folder in diffusers layout; a single file is converted first, and the model is kept."""
    artifact = context.artifact(name)
    if artifact.manifest.kind is Kind.MODEL:
        return artifact
    folder = context.workdir / "base"
    if accelerator.is_main_process:
        try:
            single_file.to_diffusers(next(artifact.folder.glob("*.safetensors")), folder)
        except ValueError as error:
            raise invalid_field("pretrained_model_name_or_path", str(error), reason="BAD_MODEL") from error
    digest = context.publish("base", Kind.MODEL, folder, sources=[Source(role="single_file", digest=artifact.digest)])
    return LocalArtifact(digest=digest, manifest=artifact.manifest, folder=folder)


def subject_pictures(request: trainer_pb2.TrainRequest, spec: TrainSpec, context: JobContext, record: Record) -> Sequence[Picture]:
    """The subject's pictures, each one once. Raises INVALID_ARGUMENT naming all that cannot be read."""
    return _read("instance_data_dir", request.instance_data_dir, spec, context, record, distinct=True)


def class_pictures(
    request: trainer_pb2.TrainRequest, spec: TrainSpec, model: Model, context: JobContext, record: Record, *, base: str,
    accelerator: Accelerator,
) -> ClassPictures:  # fmt: skip
    """As many as were asked for: those that are there, all of which count, then new ones."""
    given: Sequence[Picture] = ()
    if request.class_data_dir:
        given = _read("class_data_dir", request.class_data_dir, spec, context, record, distinct=False)
    missing = spec.num_class_images - len(given)
    if missing <= 0:
        return ClassPictures(pictures=given[: spec.num_class_images], artifact=context.artifact(request.class_data_dir).digest)
    dtype = _precision(spec, accelerator)
    facts: dict[str, Any] = {
        "prompt": spec.class_prompt, "first": len(given), "count": missing, "seed": spec.seed, "steps": spec.class_inference_steps,
        "guidance_scale": spec.class_guidance_scale, "side": spec.resolution, "dtype": dtype,
    }  # fmt: skip
    key = pictures.class_pictures_key(base, **facts)
    made = context.find(Kind.DATASET, key)
    if made is not None:
        context.log(f"{missing} class pictures were made before and are used again")
        folder, sources, metadata = made.folder, made.manifest.sources, made.manifest.metadata
    else:
        folder, sources, metadata = context.workdir / f"class-{missing}", (Source(role="base", digest=base),), {"key": key}
        if accelerator.is_main_process:
            done = reporter(context, "class pictures", missing)
            pictures.make_class_pictures(model, folder, batch_size=spec.sample_batch_size, done=done, **facts)
    digest = context.publish("class_pictures", Kind.DATASET, folder, sources=sources, metadata=metadata)
    new = dataset.read(folder, resolution=spec.resolution, distinct=False).pictures
    return ClassPictures(pictures=[*given, *new], artifact=digest)


def reporter(context: JobContext, phase: str, total: int) -> Any:
    """What is told how many are done, and passes it on."""

    def report(done: int) -> None:
        context.check_cancelled()
        context.progress(phase, done, total)

    return report


def _read(field: str, name: str, spec: TrainSpec, context: JobContext, record: Record, *, distinct: bool) -> Sequence[Picture]:
    try:
        found = dataset.read(context.artifact(name).folder, resolution=spec.resolution, distinct=distinct)
    except ValueError as error:
        raise invalid_field(field, str(error), reason="BAD_PICTURES") from error
    for warning in found.warnings:
        record.warn(f"{field}: {warning}")
    return found.pictures


def _precision(spec: TrainSpec, accelerator: Accelerator) -> torch.dtype:
    asked = spec.prior_generation_precision or spec.mixed_precision or "no"
    if asked not in ("fp16", "bf16"):
        return torch.float32
    if accelerator.device.type == "cuda":
        return torch.float16 if asked == "fp16" else torch.bfloat16
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32
