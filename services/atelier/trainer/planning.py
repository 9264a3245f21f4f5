"""What a run will do, in lines for people, before it starts. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import PurePosixPath

from atelier.artifacts.manifest import Manifest
from atelier.trainer.spec import Method, TrainSpec

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def count_pictures(manifest: Manifest) -> int:
    """How many files of a dataset are pictures by their names."""
    return sum(PurePosixPath(file.path).suffix.lower() in PICTURE_ENDINGS for file in manifest.files)


def plan(spec: TrainSpec, *, num_instance: int, num_class: int, unet: Mapping[str, Sequence[int]], warnings: Sequence[str]) -> list[str]:
    """The plan; `unet` holds the shape of each of the UNet's tensors by name, empty where they are not known."""
    total = spec.steps(num_instance, spec.num_class_images)
    lines = [
        f"{spec.method}: {total} steps of {spec.train_batch_size * spec.gradient_accumulation_steps * spec.num_processes} pictures"
        f" at {spec.resolution} px, learning rate {spec.learning_rate:g} ({spec.lr_scheduler}), seed {spec.seed}",
        f"{num_instance} pictures of the subject",
    ]
    if spec.with_prior_preservation:
        missing = max(0, spec.num_class_images - num_class)
        lines.append(f"{num_class} class pictures are there, {missing} will be made with the base model")
    if unet:
        lines.append(f"about {estimate_bytes(spec, unet) / 2**30:.1f} GiB of memory at the peak (estimated)")
    return lines + [f"warning: {warning}" for warning in warnings]


def estimate_bytes(spec: TrainSpec, unet: Mapping[str, Sequence[int]]) -> int:
    """Peak memory of training, in bytes: weights, in fp32 or what a LoRA's run computes in; for what learns gradient and AdamW's two
    moments, in fp32; activations.

    Activations were measured on the model on board (19.5 M parameters, 128 px): about 45 MB a row in fp32, and grow with the pixels and the
    square root of the parameters; half in 16 bit, a quarter with gradient checkpointing.
    """
    weights = sum(prod(shape) for shape in unet.values())
    learning = weights if spec.method is Method.DREAMBOOTH else _adapter_weights(spec, unet)
    rows = spec.train_batch_size * (2 if spec.with_prior_preservation else 1)
    activations = 45e6 * rows * (spec.resolution / 128) ** 2 * (weights / 19.5e6) ** 0.5
    half = spec.mixed_precision in ("fp16", "bf16")
    activations *= (0.5 if half else 1.0) * (0.25 if spec.gradient_checkpointing else 1.0)
    average = learning if spec.ema_decay is not None else 0
    kept = 2 if half and spec.method is Method.DREAMBOOTH_LORA else 4
    return int(kept * weights + 4 * 3 * learning + 4 * average + activations + 0.5 * 2**30)


def _adapter_weights(spec: TrainSpec, unet: Mapping[str, Sequence[int]]) -> int:
    attention = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    chosen = [s for n, s in unet.items() if len(s) > 1 and (spec.lora_layers == "all" or n.endswith(attention))]
    return sum(spec.rank * (shape[0] + prod(shape[1:])) for shape in chosen)
