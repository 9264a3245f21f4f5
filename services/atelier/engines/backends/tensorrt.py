"""TensorRT engines, built through torch.export and Torch-TensorRT: one plan for each batch, to be refitted with any model's weights.

A plan is plain TensorRT: it is served without Torch-TensorRT and unpickles nothing. It is built refittable, with random weights that are
all distinct; while Torch-TensorRT converts, every weight's name in the plan is recorded with the tensor that went into it, found again
by its bytes.

Not run so far, since TensorRT's libraries could not be had: written against Torch-TensorRT 2.14's source.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from atelier import errors
from atelier.engines.program import Program
from atelier.graphs.weights import distinct_weights

MAP_FILE = "weights.json"
CONSTANTS_FILE = "constants.safetensors"
BASE_OPTIONS: Mapping[str, Any] = {
    "truncate_double": True,
    "require_full_compilation": True,
    "min_block_size": 1,
    # The default takes every attention bias for a causal mask.
    "attn_bias_is_causal": False,
    # With TF32, the default, an engine in fp32 would never keep its bound.
    "disable_tf32": True,
    "optimization_level": 4,
}
PLAN_OPTIONS: Mapping[str, Any] = {**BASE_OPTIONS, "immutable_weights": False}


def require() -> Any:
    """The module `torch_tensorrt`. FAILED_PRECONDITION (TENSORRT_NOT_INSTALLED) where it or its libraries are missing."""
    try:
        importlib.import_module("tensorrt")
        return importlib.import_module("torch_tensorrt")
    except Exception as error:  # missing libraries show as plain Exception, OSError or ImportError
        message = (
            "TensorRT is not installed here: the extra `tensorrt` and its libraries are needed, on a machine with a CUDA device; "
            "or compile with backend inductor"
        )
        raise errors.failed_precondition("TENSORRT_NOT_INSTALLED", message) from error


def build(program: Program, target: Path) -> None:
    """Writes the engine of a program into the folder `target`: a plan for each batch, and what to refit them with."""
    torch_tensorrt = require()
    check_options(torch_tensorrt, PLAN_OPTIONS)
    convert = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine
    maps: dict[str, dict[str, str]] = {}
    constants: dict[str, Tensor] = {}
    for batch in program.profile.batch_sizes:
        exported = program.export(program.dtype, layout=torch.contiguous_format, batch=batch)
        inputs = list(program.inputs(batch, program.dtype, torch.contiguous_format))
        with recorded_weights(torch_tensorrt) as recorded, refusals_as_value_errors(batch):
            # A timing cache is bound to the GPU; one of this build alone cannot be of another.
            plan = convert(exported, arg_inputs=inputs, timing_cache_path=str(target / "timing.cache"), **PLAN_OPTIONS)
        (target / f"batch-{batch}.plan").write_bytes(plan)
        maps[str(batch)], rest = map_weights(recorded, distinct_weights(program.graph, dtype=program.dtype))
        constants |= {f"{batch}/{name}": tensor for name, tensor in rest.items()}
    (target / "timing.cache").unlink(missing_ok=True)
    shapes = [list(example.shape[1:]) for example in program.inputs(1, program.dtype, torch.contiguous_format)]
    content = {
        "inputs": dict(zip(program.input_names, shapes, strict=True)),
        "weights": {name: list(shape) for name, shape in program.graph.tensors.items()},
        "plans": maps,
    }
    (target / MAP_FILE).write_text(json.dumps(content, indent=1) + "\n")
    save_file(constants, target / CONSTANTS_FILE)
    shutil.copy(program.model / program.graph.role.part / "config.json", target / "config.json")


@contextmanager
def refusals_as_value_errors(batch: int) -> Iterator[None]:
    """How Torch-TensorRT says that it does not know an operation, or that TensorRT gave nothing: as ValueError."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"Torch-TensorRT found no plan for batch {batch}; the worker's log says why") from error


def check_options(torch_tensorrt: Any, options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that Torch-TensorRT does not know; itself it takes any and says nothing."""
    known = torch_tensorrt.dynamo.CompilationSettings.__dataclass_fields__
    if unknown := sorted(options.keys() - known.keys()):
        raise ValueError(f"this Torch-TensorRT has no option {', '.join(unknown)}")


@contextmanager
def recorded_weights(torch_tensorrt: Any) -> Iterator[dict[str, Tensor]]:
    """Every weight that is put into a network meanwhile, by its name in the plan.

    All of them pass through `ConversionContext.record_weight`, which is wrapped for as long as the block lasts.
    """
    context = torch_tensorrt.dynamo.conversion.ConversionContext
    original = context.record_weight
    recorded: dict[str, Tensor] = {}

    def record(self: Any, name: str, weight: Tensor) -> None:
        recorded[name] = weight.detach().cpu().contiguous().clone()
        original(self, name, weight)

    context.record_weight = record
    try:
        yield recorded
    finally:
        context.record_weight = original


def map_weights(recorded: Mapping[str, Tensor], template: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Plan name -> the model's weight whose bytes it got; and what is no weight of the model (tables, ones), to be set as it is.

    Raises ValueError for a weight of the model that no plan name got: it was folded into another, and a refit could not change it.
    """
    # Normalizations may have theirs in fp32 whatever the graph's precision.
    by_bytes = {_digest(form): name for name, tensor in template.items() for form in (tensor, tensor.float())}
    found = {plan_name: by_bytes[_digest(tensor)] for plan_name, tensor in recorded.items() if _digest(tensor) in by_bytes}
    if missing := template.keys() - set(found.values()):
        raise ValueError(f"TensorRT's network has no weight {min(missing)!r} any more ({len(missing)} in all)")
    return found, {name: tensor for name, tensor in recorded.items() if name not in found}


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
