"""A train job: pictures and a base model in, checkpoints on the way, a model or LoRA and the record of the run out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from atelier.artifacts.manifest import Kind, Source
from atelier.errors import invalid_field
from atelier.formats import single_file
from atelier.graphs.model import Model, load_model
from atelier.jobs.context import JobContext, LocalArtifact
from atelier.trainer import checkpoint, dataset, dreambooth, dreambooth_lora, latents, loss, pictures, training
from atelier.trainer.compilation import Compilation
from atelier.trainer.dataset import Picture
from atelier.trainer.record import Record
from atelier.trainer.requests import to_spec
from atelier.trainer.sampling import Sampler
from atelier.trainer.spec import Method, TrainSpec
from atelier.v1 import trainer_pb2

METHODS: dict[Method, Any] = {Method.DREAMBOOTH: dreambooth, Method.DREAMBOOTH_LORA: dreambooth_lora}
"""One module a method: `prepare`, `save`, and the role and kind of the result."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the job was given, on this machine's disk."""

    base: LocalArtifact
    instance: LocalArtifact
    prior: LocalArtifact | None


def execute(request: trainer_pb2.TrainRequest, context: JobContext) -> None:
    """Runs the job. Raises INVALID_ARGUMENT for pictures that cannot be read and checkpoints that do not fit."""
    spec, _ = to_spec(request)
    accelerator = _accelerator(spec, context)
    # Everything random has a generator of its own but the adapters' first values and dropout.
    torch.manual_seed(spec.seed)
    base = _base_model(request.pretrained_model_name_or_path, context, accelerator)
    model = load_model(base.folder, device=accelerator.device)
    instance = _pictures("instance_data_dir", request.instance_data_dir, spec, context)
    prior = _class_pictures(request, spec, base, model, context, accelerator)
    method = METHODS[spec.method]
    trainable = method.prepare(model.unet, spec)
    run = _run(spec, context, accelerator, model, trainable, instance, prior)
    record = Record(context.workdir / "run", spec=spec, context=context, main=accelerator.is_main_process)
    with Compilation(run, model, base.folder, context) as compilation:
        _resume(request, run, context)
        _connect(run, record, model, spec)
        training.train(run, context)
        compilation.publish()
    inputs = Inputs(base=base, instance=context.artifact(request.instance_data_dir), prior=prior[1] if prior else None)
    _publish(run, record, inputs, request, context)


def _accelerator(spec: TrainSpec, context: JobContext) -> Accelerator:
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # without it each process of torchrun would train alone, without a word
    precision = spec.mixed_precision or "no"
    if precision == "fp16" and not torch.cuda.is_available():
        # Without AMX bf16 was measured slower than fp32 on one maker's processors, and no faster on another's.
        precision = "bf16" if torch.cpu._is_amx_tile_supported() else "no"
        context.log(f"this device cannot train in fp16: training in {'fp32' if precision == 'no' else precision}", level="warning")
    accelerator = Accelerator(mixed_precision=precision)
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    assert accelerator.num_processes == wanted, f"{wanted} processes were started, accelerate sees {accelerator.num_processes}"
    return accelerator


def _base_model(name: str, context: JobContext, accelerator: Accelerator) -> LocalArtifact:
    artifact = context.artifact(name)
    if artifact.manifest.kind is Kind.MODEL:
        return artifact
    folder = context.workdir / "base"
    if accelerator.is_main_process:
        single_file.to_diffusers(next(artifact.folder.glob("*.safetensors")), folder)
    digest = context.publish("base", Kind.MODEL, folder, sources=[Source(role="single_file", digest=artifact.digest)])
    return LocalArtifact(digest=digest, manifest=artifact.manifest, folder=folder)


def _pictures(field: str, name: str, spec: TrainSpec, context: JobContext) -> Sequence[Picture]:
    try:
        found = dataset.read(context.artifact(name).folder, resolution=spec.resolution)
    except ValueError as error:
        raise invalid_field(field, str(error), reason="BAD_PICTURES") from error
    for warning in found.warnings:
        context.log(warning, level="warning")
    return found.pictures


def _class_pictures(
    request: trainer_pb2.TrainRequest, spec: TrainSpec, base: LocalArtifact, model: Model, context: JobContext, accelerator: Accelerator
) -> tuple[Sequence[Picture], LocalArtifact | None] | None:
    if not spec.with_prior_preservation:
        return None
    given = _pictures("class_data_dir", request.class_data_dir, spec, context) if request.class_data_dir else ()
    missing = spec.num_class_images - len(given)
    if missing <= 0:
        return given, context.artifact(request.class_data_dir)
    facts: dict[str, Any] = {
        "prompt": spec.class_prompt, "seed": spec.seed, "steps": spec.class_inference_steps,
        "guidance_scale": spec.class_guidance_scale, "side": spec.resolution,
    }  # fmt: skip
    key = f"{pictures.class_pictures_key(base=base.digest, **facts)}/{missing}"
    made = context.find(Kind.DATASET, key)
    if made is None:
        folder = context.workdir / f"class-{missing}"
        if accelerator.is_main_process:
            pictures.make_class_pictures(
                model, folder, count=missing, batch_size=spec.sample_batch_size, dtype=_prior_dtype(spec, accelerator),
                done=_reporter(context, "class pictures", missing), **facts,
            )  # fmt: skip
        digest = context.publish(
            "class_pictures", Kind.DATASET, folder, sources=[Source(role="base", digest=base.digest)], metadata={"key": key}
        )
        made = LocalArtifact(digest=digest, manifest=base.manifest, folder=folder)
    else:
        context.log(f"{missing} class pictures were made before and are used again")
        made_again = context.publish(
            "class_pictures", Kind.DATASET, made.folder, sources=made.manifest.sources, metadata=made.manifest.metadata
        )
        made = LocalArtifact(digest=made_again, manifest=made.manifest, folder=made.folder)
    new = dataset.read(made.folder, resolution=spec.resolution).pictures
    return [*given, *new], made


def _prior_dtype(spec: TrainSpec, accelerator: Accelerator) -> torch.dtype:
    asked = spec.prior_generation_precision or spec.mixed_precision or "no"
    if asked == "fp16" and accelerator.device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if asked in ("bf16", "fp16") and torch.cpu._is_amx_tile_supported() else torch.float32


def _run(
    spec: TrainSpec, context: JobContext, accelerator: Accelerator, model: Model, trainable: dict[str, torch.Tensor],
    instance: Sequence[Picture], prior: tuple[Sequence[Picture], LocalArtifact | None] | None,
) -> training.Run:  # fmt: skip
    def cached(found: Sequence[Picture], prompt: str, phase: str) -> latents.Cached:
        return latents.cache(
            model, found, prompt=prompt, resolution=spec.resolution, center_crop=spec.center_crop, seed=spec.seed,
            step=_reporter(context, phase, len(found)),
        )  # fmt: skip

    sampler = Sampler(
        instance=cached(instance, spec.instance_prompt, "latents"),
        prior=cached(prior[0], spec.class_prompt, "latents of class pictures") if prior else None,
        batch_size=spec.train_batch_size,
        seed=spec.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_train_timesteps=model.facts.num_train_timesteps,
        scaling_factor=model.facts.scaling_factor,
        offset_noise=spec.offset_noise,
    )
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
        total_steps=spec.steps(len(instance), len(prior[0]) if prior else 0),
        facts={"precision": accelerator.mixed_precision, "threads": torch.get_num_threads(), "processes": accelerator.num_processes},
    )


def _resume(request: trainer_pb2.TrainRequest, run: training.Run, context: JobContext) -> None:
    owner, _, step = request.resume_from_checkpoint.partition("/checkpoint-")
    found = context.read_checkpoint()
    if found is None and owner:
        found = context.read_checkpoint(owner=owner, step=int(step or 0))
        if found is None:
            raise invalid_field("resume_from_checkpoint", f"{request.resume_from_checkpoint} has no checkpoint")
    if found is None:
        return
    at, folder = found
    try:
        if at >= run.total_steps:  # promoted: its weights are the result
            with torch.no_grad():
                for name, tensor in checkpoint.read_weights(folder).items():
                    run.trainable[name].copy_(tensor)
            run.step, run.ema = at, None
        else:
            different = training.resume(run, folder)
            if different:
                context.log(f"goes on with {', '.join(different)}: not bit for bit as without the interruption", level="warning")
    except (ValueError, KeyError) as error:
        raise invalid_field("resume_from_checkpoint", str(error)) from error
    context.log(f"goes on at step {run.step}")


def _connect(run: training.Run, record: Record, model: Model, spec: TrainSpec) -> None:
    """Validation pictures and TensorBoard."""
    per_epoch = spec.steps_per_epoch(len(run.sampler.instance), len(run.sampler.prior or ()))
    every = spec.validation_steps or (spec.validation_epochs or 0) * per_epoch
    run.write_scalars = record.scalars

    def validate(step: int) -> None:
        if spec.validation_prompt and every and (step % every == 0 or step == run.total_steps) and run.accelerator.is_main_process:
            run.unet.eval()
            record.validate(model, step, side=spec.resolution)
            run.unet.train()

    run.validate = validate


def _publish(run: training.Run, record: Record, inputs: Inputs, request: trainer_pb2.TrainRequest, context: JobContext) -> None:
    spec, method = run.spec, METHODS[run.spec.method]
    folder = context.workdir / "result"
    if run.accelerator.is_main_process:
        method.save(inputs.base.folder, run.ema or run.trainable, folder, spec=spec)
        record.finish(folder, losses=run.losses, base=inputs.base.digest, facts=run.facts)
    sources = [Source(role="base", digest=inputs.base.digest), Source(role="dataset", digest=inputs.instance.digest)]
    if inputs.prior is not None:
        sources.append(Source(role="class_pictures", digest=inputs.prior.digest))
    run_digest = context.publish("run", Kind.RUN, record.folder, sources=sources, metadata={"method": str(spec.method), "steps": run.step})
    metadata: dict[str, Any] = {"method": str(spec.method), "steps": run.step, "base": inputs.base.digest, **run.facts}
    if spec.rank:
        metadata |= {"rank": spec.rank, "layers": spec.lora_layers}
    context.publish(method.ROLE, method.KIND, folder, sources=[*sources, Source(role="run", digest=run_digest)], metadata=metadata)


def _reporter(context: JobContext, phase: str, total: int) -> Any:
    def report(done: int) -> None:
        context.check_cancelled()
        context.progress(phase, done, total)

    return report
