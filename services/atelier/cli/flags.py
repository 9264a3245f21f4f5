"""The flags of `atelier train`: those of diffusers' scripts, from one table and the fields of TrainRequest.

A field of TrainRequest is a flag of the same name; its type is the field's, its default and its methods are those of
`atelier.trainer.spec.DEFAULTS`. Flags of the scripts that are no field are accepted with one warning where leaving them out cannot change
what is learnt, else refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor

from atelier.trainer.spec import DEFAULTS, Method
from atelier.v1 import trainer_pb2

FIELDS: Mapping[str, tuple[str, str]] = {
    "instance_prompt": ("What is learnt", "Prompt with the identifier, as in 'a photo of sks dog'; captions (NAME.txt) come first."),
    "class_prompt": ("What is learnt", "Prompt of the class, as in 'a photo of dog'."),
    "with_prior_preservation": ("What is learnt", "Keeps the class: adds the prior preservation loss on class pictures."),
    "prior_loss_weight": ("What is learnt", "Weight of the prior preservation loss."),
    "num_class_images": ("What is learnt", "How many class pictures there shall be; missing ones are made."),
    "class_guidance_scale": ("What is learnt", "Guidance scale of the class pictures that are made."),
    "class_inference_steps": ("What is learnt", "Denoising steps of the class pictures that are made."),
    "sample_batch_size": ("What is learnt", "Class pictures made at once."),
    "prior_generation_precision": ("What is learnt", "Precision in which class pictures are made: no, fp32, fp16 or bf16."),
    "resolution": ("Pictures", "Side of the training pictures in pixels."),
    "center_crop": ("Pictures", "Crops in the middle instead of at random."),
    "train_batch_size": ("Training", "Pictures a step and process."),
    "num_train_epochs": ("Training", "Passes over the pictures; --max_train_steps overrides it."),
    "max_train_steps": ("Training", "Steps in all."),
    "gradient_accumulation_steps": ("Training", "Steps whose gradients are added up before an update."),
    "gradient_checkpointing": ("Training", "Computes activations twice to save memory."),
    "mixed_precision": ("Training", "no, fp16 or bf16; fp16 becomes what the device can train in."),
    "num_processes": ("Training", "Processes that train together."),
    "seed": ("Training", "Seed of the run; drawn, and recorded, when left out."),
    "ema_decay": ("Training", "Makes a moving average of the weights the result."),
    "learning_rate": ("Optimizer", "Learning rate after warm-up."),
    "scale_lr": ("Optimizer", "Multiplies the learning rate by processes, accumulation and batch."),
    "lr_scheduler": ("Optimizer", "linear, cosine, cosine_with_restarts, polynomial, constant or constant_with_warmup."),
    "lr_warmup_steps": ("Optimizer", "Steps of warm-up."),
    "lr_num_cycles": ("Optimizer", "Restarts of cosine_with_restarts."),
    "lr_power": ("Optimizer", "Power of polynomial."),
    "adam_beta1": ("Optimizer", "AdamW's beta 1."),
    "adam_beta2": ("Optimizer", "AdamW's beta 2."),
    "adam_weight_decay": ("Optimizer", "AdamW's weight decay."),
    "adam_epsilon": ("Optimizer", "AdamW's epsilon."),
    "max_grad_norm": ("Optimizer", "Gradients are clipped to this norm."),
    "snr_gamma": ("Loss", "Min-SNR gamma, 5 is usual; also on the prior loss."),
    "offset_noise": ("Loss", "Adds a constant to each channel's noise."),
    "rank": ("LoRA", "Rank of the LoRA."),
    "lora_alpha": ("LoRA", "Numerator of the LoRA's scale; left out: the rank."),
    "lora_dropout": ("LoRA", "Dropout of the LoRA."),
    "lora_layers": ("LoRA", "attention (as the script), or all: feed-forward, projections and convolutions too."),
    "checkpointing_steps": ("Checkpoints", "Steps between checkpoints."),
    "checkpoints_total_limit": ("Checkpoints", "How many checkpoints are kept."),
    "validation_prompt": ("Validation", "Pictures of this prompt are made on the way."),
    "num_validation_images": ("Validation", "How many."),
    "validation_steps": ("Validation", "Steps between them."),
    "validation_epochs": ("Validation", "Epochs between them."),
}
"""Field of TrainRequest -> panel of the help, and what it means. The fields that are not here have flags of their own in `train.py`."""


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A flag of the scripts that is no field: what to say, whether it is refused, and whether it takes a value."""

    why: str
    refused: bool = False
    value: bool = False
    harmless_values: tuple[str, ...] = ()
    """Values that need no word at all."""


FOREIGN: Mapping[str, Foreign] = {
    "allow_tf32": Foreign(why="no effect; the trainer decides by its device"),
    "dataloader_num_workers": Foreign(why="no effect: latents are cached once, nothing is left to load", value=True),
    "enable_xformers_memory_efficient_attention": Foreign(why="no effect: PyTorch's own attention is as lean"),
    "hub_model_id": Foreign(why="no effect: nothing leaves this installation", value=True),
    "hub_token": Foreign(why="no effect: nothing leaves this installation", value=True),
    "push_to_hub": Foreign(why="no effect: nothing leaves this installation"),
    "local_rank": Foreign(why="no effect; --num_processes starts several", value=True, harmless_values=("-1",)),
    "pre_compute_text_embeddings": Foreign(why="no effect: they always are"),
    "report_to": Foreign(why="no effect: TensorBoard events are written, and nothing else", value=True, harmless_values=("tensorboard",)),
    "set_grads_to_none": Foreign(why="no effect: they always are"),
    "skip_save_text_encoder": Foreign(why="no effect: the result holds the base's text encoder"),
    "use_8bit_adam": Foreign(why="no effect: AdamW keeps full precision"),
    "validation_scheduler": Foreign(why="no effect: validation pictures are drawn with the model's own scheduler", value=True),
    "variant": Foreign(why="no effect: the files without a variant come first, else those that are there", value=True),
    "class_labels_conditioning": Foreign(why="Stable Diffusion 1.x has no class labels: leave it out", refused=True, value=True),
    "image_interpolation_mode": Foreign(
        why="pictures are resized with the script's default, lanczos: leave it out", refused=True, value=True, harmless_values=("lanczos",)
    ),
    "text_encoder_use_attention_mask": Foreign(why="the text encoder sees the whole prompt: leave it out", refused=True),
    "tokenizer_max_length": Foreign(why="the tokenizer's own length is used: leave it out", refused=True, value=True),
    "tokenizer_name": Foreign(why="the tokenizer is the model's: leave it out", refused=True, value=True),
    "train_text_encoder": Foreign(why="only the UNet is trained: leave it out", refused=True),
    "validation_images": Foreign(why="validation starts from a prompt alone: leave it out", refused=True, value=True),
}
"""Flags of the scripts that are no field of TrainRequest."""

PRIOR = ("class_data_dir", "class_prompt", "num_class_images", "prior_loss_weight")
"""Flags that mean nothing without --with_prior_preservation."""

_TYPES: Mapping[int, type] = {
    FieldDescriptor.TYPE_STRING: str,
    FieldDescriptor.TYPE_BOOL: bool,
    FieldDescriptor.TYPE_INT32: int,
    FieldDescriptor.TYPE_INT64: int,
    FieldDescriptor.TYPE_DOUBLE: float,
}


def type_of(field: str) -> type:
    """The Python type of a field's flag."""
    return _TYPES[trainer_pb2.TrainRequest.DESCRIPTOR.fields_by_name[field].type]


def fields_of(method: Method) -> list[str]:
    """The fields that have a flag for a method."""
    return [name for name in FIELDS if name in DEFAULTS[method] or name in ("instance_prompt", "class_prompt")]


def default_of(method: Method, field: str) -> str:
    """The default as the help shows it; empty where there is none."""
    value = DEFAULTS[method].get(field)
    return "" if value is None or isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
