"""What a training run is asked to do. Names and defaults are those of diffusers' scripts; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from atelier.errors import Violation


class Method(StrEnum):
    """What is trained; the words are those of docs and protos."""

    DREAMBOOTH = "DREAMBOOTH"
    DREAMBOOTH_LORA = "DREAMBOOTH_LORA"


class Compile(StrEnum):
    """Whether forward and backward are compiled."""

    AUTO = "AUTO"
    NOW = "NOW"
    NEVER = "NEVER"


SCRIPTS_VERSION = "diffusers 0.42 (train_dreambooth.py, train_dreambooth_lora.py)"
"""Where the defaults below come from."""

_BOTH: Mapping[str, Any] = {
    "with_prior_preservation": False,
    "prior_loss_weight": 1.0,
    "num_class_images": 100,
    "seed": None,
    "resolution": 512,
    "center_crop": False,
    "train_batch_size": 4,
    "sample_batch_size": 4,
    "num_train_epochs": 1,
    "max_train_steps": None,
    "checkpointing_steps": 500,
    "checkpoints_total_limit": None,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "learning_rate": 5e-6,
    "scale_lr": False,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 500,
    "lr_num_cycles": 1,
    "lr_power": 1.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 1e-2,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "validation_prompt": None,
    "num_validation_images": 4,
    "mixed_precision": None,
    "prior_generation_precision": None,
    # Not flags of the scripts: what they do without asking.
    "snr_gamma": None,
    "offset_noise": False,
    "ema_decay": None,
    "class_guidance_scale": 7.5,
    "class_inference_steps": 50,
    "num_processes": 1,
}

DEFAULTS: Mapping[Method, Mapping[str, Any]] = {
    # checkpoints_total_limit: the scripts keep all; whole UNets fill disks, so 2 are kept.
    Method.DREAMBOOTH: {**_BOTH, "checkpoints_total_limit": 2, "validation_steps": 100},
    Method.DREAMBOOTH_LORA: {
        **_BOTH,
        "learning_rate": 5e-4,
        "validation_epochs": 50,
        "rank": 4,
        "lora_dropout": 0.0,
        "lora_alpha": None,
        "lora_layers": "attention",
    },
}
"""What a field that was left out means, by method. Fields that are not here do not belong to the method."""

INTERPOLATION: Mapping[Method, str] = {Method.DREAMBOOTH: "bilinear", Method.DREAMBOOTH_LORA: "lanczos"}
"""How pictures are resized: what each script does where it is not told otherwise."""

SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
LORA_LAYERS = ("attention", "all")
PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """A run, complete: every field has its value. Units: pixels, steps, pictures."""

    method: Method
    instance_prompt: str
    class_prompt: str
    with_prior_preservation: bool
    prior_loss_weight: float
    num_class_images: int
    seed: int
    resolution: int
    center_crop: bool
    train_batch_size: int
    sample_batch_size: int
    num_train_epochs: int
    max_train_steps: int | None
    checkpointing_steps: int
    checkpoints_total_limit: int | None
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    learning_rate: float
    scale_lr: bool
    lr_scheduler: str
    lr_warmup_steps: int
    lr_num_cycles: int
    lr_power: float
    adam_beta1: float
    adam_beta2: float
    adam_weight_decay: float
    adam_epsilon: float
    max_grad_norm: float
    validation_prompt: str | None
    num_validation_images: int
    mixed_precision: str | None
    prior_generation_precision: str | None
    snr_gamma: float | None
    offset_noise: bool
    ema_decay: float | None
    class_guidance_scale: float
    class_inference_steps: int
    num_processes: int
    compile: Compile = Compile.AUTO
    validation_steps: int | None = None
    validation_epochs: int | None = None
    rank: int = 0
    lora_dropout: float = 0.0
    lora_alpha: float | None = None
    lora_layers: str = "attention"

    def steps(self, num_instance: int, num_class: int) -> int:
        """Steps in all, for so many pictures."""
        return self.max_train_steps or self.num_train_epochs * self.steps_per_epoch(num_instance, num_class)

    def steps_per_epoch(self, num_instance: int, num_class: int) -> int:
        """Updates in one pass, as the scripts count: a pass is over the larger of the two sets."""
        pictures = max(num_instance, num_class if self.with_prior_preservation else 0)
        batches = math.ceil(pictures / (self.train_batch_size * self.num_processes))
        return math.ceil(batches / self.gradient_accumulation_steps)


def spec_fields(method: Method) -> set[str]:
    """Names of the fields that a request for this method may set."""
    return set(DEFAULTS[method])


def complete(method: Method, given: Mapping[str, Any], *, drawn_seed: int) -> tuple[dict[str, Any], list[str]]:
    """The fields with the method's defaults filled in, and warnings for people about what is ignored."""
    values = {**DEFAULTS[method], **given}
    values["seed"] = drawn_seed if values["seed"] is None else values["seed"]
    warnings = []
    ignored = [name for name in ("class_data_dir", "class_prompt", "num_class_images", "prior_loss_weight") if given.get(name)]
    if ignored and not values["with_prior_preservation"]:
        warnings.append(f"{', '.join(ignored)}: ignored without with_prior_preservation")
    return values, warnings


def violations(method: Method, values: Mapping[str, Any]) -> list[Violation]:
    """Everything that is wrong with the fields, at once."""
    found = [Violation(n, f"does not belong to {method}") for n in sorted(set(values) - spec_fields(method) - _TEXT) if n != "compile"]
    for name, value in values.items():
        problem = _problem(name, value)
        if problem:
            found.append(Violation(name, problem))
    if not values.get("instance_prompt"):
        found.append(Violation("instance_prompt", "must be set, for example `a photo of sks dog`"))
    if values.get("with_prior_preservation") and not values.get("class_prompt"):
        found.append(Violation("class_prompt", "must be set with with_prior_preservation, for example `a photo of dog`"))
    return found


_TEXT = {"instance_prompt", "class_prompt"}
_POSITIVE = {
    "num_class_images", "train_batch_size", "sample_batch_size", "num_train_epochs", "max_train_steps", "checkpointing_steps",
    "checkpoints_total_limit", "gradient_accumulation_steps", "learning_rate", "lr_num_cycles", "lr_power", "adam_epsilon",
    "max_grad_norm", "num_validation_images", "snr_gamma", "class_guidance_scale", "class_inference_steps", "num_processes",
    "validation_steps", "validation_epochs", "rank", "lora_alpha",
}  # fmt: skip
_NOT_NEGATIVE = {"prior_loss_weight", "lr_warmup_steps", "adam_weight_decay", "seed"}
_FRACTION = {"adam_beta1", "adam_beta2", "lora_dropout", "ema_decay"}
_CHOICES = {
    "lr_scheduler": SCHEDULERS,
    "lora_layers": LORA_LAYERS,
    "mixed_precision": PRECISIONS,
    "prior_generation_precision": (*PRECISIONS, "fp32"),
}
_MOST = {"max_train_steps": 10_000_000, "num_class_images": 10_000, "train_batch_size": 1024, "resolution": 2048, "num_processes": 64,
         "rank": 1024, "seed": 2**32 - 1}  # fmt: skip


def _problem(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isfinite(value):
        return f"must be finite, got {value}"
    if name in _POSITIVE and value <= 0:
        return f"must be positive, got {value}"
    if name in _NOT_NEGATIVE and value < 0:
        return f"must not be negative, got {value}"
    if name in _FRACTION and not 0 <= value < 1:
        return f"must be at least 0 and below 1, got {value}"
    if name in _CHOICES and value not in _CHOICES[name]:
        return f"must be one of {', '.join(_CHOICES[name])}, got {value!r}"
    if name == "resolution" and (value < 64 or value % 8):
        return f"must be a multiple of 8 and at least 64, got {value}"
    if name in _MOST and value > _MOST[name]:
        return f"must be at most {_MOST[name]}, got {value}"
    return ""


def make(method: Method, values: Mapping[str, Any]) -> TrainSpec:
    """The spec of complete, checked fields."""
    known = {field.name for field in fields(TrainSpec)}
    return TrainSpec(method=method, **{name: value for name, value in values.items() if name in known})
