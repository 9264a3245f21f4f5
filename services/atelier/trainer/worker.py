"""A train job: pictures and a base model in, checkpoints on the way, a model or LoRA and the record of the run out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from atelier.artifacts.manifest import Kind, Source
from atelier.errors import invalid_field
from atelier.graphs.model import Model, load_model
from atelier.jobs.context import JobContext, LocalArtifact
from atelier.trainer import checkpoint, dreambooth, dreambooth_lora, inputs, latents, loss, training
from atelier.trainer.compilation import Compilation
from atelier.trainer.inputs import ClassPictures
from atelier.trainer.record import Record
from atelier.trainer.requests import to_spec
from atelier.trainer.sampling import Sampler
from atelier.trainer.spec import INTERPOLATION, Compile, Method, TrainSpec
from atelier.v1 import trainer_pb2

METHODS: dict[Method, Any] = {Method.DREAMBOOTH: dreambooth, Method.DREAMBOOTH_LORA: dreambooth_lora}
"""One module a method: `prepare`, `save`, and the role and kind of the result."""

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WHAT = ("method", "base", "rank", "layers")
"""Facts that a run and the one whose checkpoint it takes over must share."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run has learnt, and how it went."""

    weights: Mapping[str, Tensor]
    progress: checkpoint.Progress


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """A checkpoint to go on from; `own` when an earlier attempt of this job wrote it."""

    folder: Path
    progress: checkpoint.Progress
    own: bool


def execute(request: trainer_pb2.TrainRequest, context: JobContext) -> None:
    """Runs the job. Raises INVALID_ARGUMENT for pictures that cannot be read and checkpoints that do not fit."""
    spec, _ = to_spec(request)
    accelerator, warnings = _accelerator(spec)
    record = Record(context.workdir / "run", spec=spec, context=context, main=accelerator.is_main_process)
    for warning in warnings:
        record.warn(warning)
    base = inputs.base_model(request.pretrained_model_name_or_path, context, accelerator)
    facts = _facts(spec, accelerator, base)
    earlier = _earlier(request, facts, context)
    if earlier is not None and earlier.progress.step >= (spec.max_train_steps or float("inf")):
        # Promoted, or ended after its last step: nothing is left to train.
        record.restore(earlier.folder, earlier.progress.losses)
        result = Result(weights=checkpoint.read_weights(earlier.folder), progress=earlier.progress)
    else:
        result = _trained(request, spec, accelerator, base, facts, earlier, record, context)
    _publish(request, spec, base, result, record, context, main=accelerator.is_main_process)


def _accelerator(spec: TrainSpec) -> tuple[Accelerator, list[str]]:
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # without it each process of torchrun would train alone, without a word
    precision, warnings = spec.mixed_precision or "no", []
    if precision == "fp16" and not torch.cuda.is_available():
        # Without AMX bf16 was measured slower than fp32 on one maker's processors, and no faster on another's.
        precision = "bf16" if torch.cpu._is_amx_tile_supported() else "no"
        warnings.append(f"this device cannot train in fp16: training in {'fp32' if precision == 'no' else precision}")
    accelerator = Accelerator(mixed_precision=precision)
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    assert accelerator.num_processes == wanted, f"{wanted} processes were started, accelerate sees {accelerator.num_processes}"
    return accelerator, warnings


def _facts(spec: TrainSpec, accelerator: Accelerator, base: LocalArtifact) -> dict[str, Any]:
    what = {"method": str(spec.method), "base": base.digest} | ({"rank": spec.rank, "layers": spec.lora_layers} if spec.rank else {})
    how = {"precision": accelerator.mixed_precision, "threads": torch.get_num_threads(), "processes": accelerator.num_processes}
    return {**what, **how}


def _earlier(request: trainer_pb2.TrainRequest, facts: Mapping[str, Any], context: JobContext) -> Earlier | None:
    owner, _, step = request.resume_from_checkpoint.partition("/checkpoint-")
    found, own = context.read_checkpoint(), True
    if found is None and owner:
        found, own = context.read_checkpoint(owner=owner, step=int(step or 0)), False
        if found is None:
            raise invalid_field("resume_from_checkpoint", f"{request.resume_from_checkpoint} has no checkpoint")
    if found is None:
        return None
    progress = checkpoint.read_progress(found[1])
    other = [name for name in WHAT if progress.facts.get(name) != facts.get(name)]
    if other:
        raise invalid_field("resume_from_checkpoint", f"the checkpoint is of a run with another {', '.join(other)}")
    return Earlier(folder=found[1], progress=progress, own=own)


def _trained(
    request: trainer_pb2.TrainRequest, spec: TrainSpec, accelerator: Accelerator, base: LocalArtifact, facts: dict[str, Any],
    earlier: Earlier | None, record: Record, context: JobContext,
) -> Result:  # fmt: skip
    model = _model(base, accelerator)
    subject = inputs.subject_pictures(request, spec, context, record)
    prior = None
    if spec.with_prior_preservation:
        prior = inputs.class_pictures(request, spec, model, context, record, base=base.digest, accelerator=accelerator)
        facts["class_pictures"] = prior.artifact
    # Everything random has a generator of its own but the adapters' first values and dropout.
    torch.manual_seed(spec.seed)
    trainable = METHODS[spec.method].prepare(model.unet, spec, DTYPES[accelerator.mixed_precision])
    sampler = _sampler(spec, accelerator, model, subject, prior, context)
    run = _run(spec, accelerator, model, trainable, sampler, facts)
    before = earlier.progress.facts.get("compiled") if earlier and (earlier.own or spec.compile is Compile.AUTO) else None
    with Compilation(run, base.folder, context, wanted=before):
        if earlier is not None:
            _resume(run, earlier, record, context)
        _connect(run, record, model, spec)
        training.train(run, context)
    progress = checkpoint.Progress(step=run.step, losses=run.losses, facts=run.facts)
    return Result(weights=run.ema or run.trainable, progress=progress)


def _model(base: LocalArtifact, accelerator: Accelerator) -> Model:
    try:
        model = load_model(base.folder, device=accelerator.device)
        loss.check_prediction_type(model.facts.prediction_type)
    except ValueError as error:
        raise invalid_field("pretrained_model_name_or_path", str(error), reason="MODEL_NOT_TRAINABLE") from error
    return model


def _sampler(
    spec: TrainSpec, accelerator: Accelerator, model: Model, subject: Any, prior: ClassPictures | None, context: JobContext
) -> Sampler:
    def cached(found: Any, prompt: str, phase: str) -> latents.Cached:
        return latents.cache(
            model, found, prompt=prompt, resolution=spec.resolution, center_crop=spec.center_crop,
            filter=Image.Resampling[INTERPOLATION[spec.method].upper()], seed=spec.seed, step=inputs.reporter(context, phase, len(found)),
        )  # fmt: skip

    return Sampler(
        instance=cached(subject, spec.instance_prompt, "latents"),
        prior=cached(prior.pictures, spec.class_prompt, "latents of class pictures") if prior else None,
        batch_size=spec.train_batch_size,
        seed=spec.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_train_timesteps=model.facts.num_train_timesteps,
        scaling_factor=model.facts.scaling_factor,
        offset_noise=spec.offset_noise,
    )


def _run(
    spec: TrainSpec, accelerator: Accelerator, model: Model, trainable: dict[str, Tensor], sampler: Sampler, facts: dict[str, Any]
) -> training.Run:
    unet: Any = model.unet
    if spec.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return training.Run(
        spec=spec,
        accelerator=accelerator,
        unet=unet,
        trainable=trainable,
        sampler=sampler,
        alphas_cumprod=loss.alphas_cumprod_of(dict(model.scheduler_config)),
        prediction_type=model.facts.prediction_type,
        total_steps=spec.steps(len(sampler.instance), len(sampler.prior or ())),
        facts=facts,
    )


def _resume(run: training.Run, earlier: Earlier, record: Record, context: JobContext) -> None:
    try:
        different = training.resume(run, earlier.folder)
    except ValueError as error:
        raise invalid_field("resume_from_checkpoint", str(error)) from error
    record.restore(earlier.folder, run.losses)
    if different:
        record.warn(f"goes on with {', '.join(different)}: not bit for bit as without the interruption")
    context.log(f"goes on at step {run.step}")


def _connect(run: training.Run, record: Record, model: Model, spec: TrainSpec) -> None:
    """Validation pictures and TensorBoard."""
    per_epoch = spec.steps_per_epoch(len(run.sampler.instance), len(run.sampler.prior or ()))
    every = spec.validation_steps or (spec.validation_epochs or 0) * per_epoch
    run.write_scalars, run.keep = record.scalars, record.keep

    def validate(step: int) -> None:
        if spec.validation_prompt and every and (step % every == 0 or step == run.total_steps) and run.accelerator.is_main_process:
            run.unet.eval()
            record.validate(model, step, side=spec.resolution, dtype=DTYPES[run.accelerator.mixed_precision])
            run.unet.train()

    run.validate = validate


def _publish(
    request: trainer_pb2.TrainRequest, spec: TrainSpec, base: LocalArtifact, result: Result, record: Record, context: JobContext, *,
    main: bool,
) -> None:  # fmt: skip
    method, folder, progress = METHODS[spec.method], context.workdir / "result", result.progress
    if main:
        method.save(base.folder, result.weights, folder, spec=spec)
        record.finish(folder, losses=progress.losses, base=base.digest, facts=progress.facts)
    metadata = {**progress.facts, "steps": progress.step}
    sources = [Source(role="base", digest=base.digest)]
    sources.append(Source(role="dataset", digest=request.instance_data_dir.removeprefix("artifacts/")))
    if "class_pictures" in progress.facts:
        sources.append(Source(role="class_pictures", digest=progress.facts["class_pictures"]))
    run_digest = context.publish("run", Kind.RUN, record.folder, sources=sources, metadata=metadata)
    context.publish(method.ROLE, method.KIND, folder, sources=[*sources, Source(role="run", digest=run_digest)], metadata=metadata)
