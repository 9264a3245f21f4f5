"""The UNet with its weights as TorchScript, for those who deploy elsewhere: `torch.jit.load` and nothing else of ours."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import torch

from atelier import errors
from atelier.compiler.compilation import Source
from atelier.compiler.profile import Target
from atelier.engines import parity
from atelier.engines.backends import tensorrt
from atelier.engines.eager import EagerRunner
from atelier.engines.manifest import Backend, Precision
from atelier.engines.parity import Inputs
from atelier.engines.program import DTYPES
from atelier.graphs.graph import Role
from atelier.graphs.model import load_unet
from atelier.graphs.modules import UNet, load_module
from atelier.jobs.context import JobContext

_jit: Any = torch.jit  # untyped in PyTorch
TRACED, OPTIMIZED = "trace_module.pt", "optimized_module.pt"
TRACE_BATCH = 2


def write_torchscript(source: Source, target: Target, folder: Path, context: JobContext) -> dict[str, Any]:
    """Writes `trace_module.pt` into `folder`, with backend tensorrt also `optimized_module.pt`; gives the artifact's metadata.

    Raises FAILED_PRECONDITION: PARITY_FAILED where what was written does not agree with eager PyTorch, BUILD_FAILED where TensorRT cannot
    build it.
    """
    device = target.fingerprint.device
    precision = target.precision or Precision.FP32
    inputs = Inputs.of_model(source.facts, target.profile, device=device)
    files = _write(source, target, precision, inputs, folder, context)
    gc.collect()
    eager = EagerRunner(load_unet(source.folder, device=device))
    figures = {}
    for name, batches in files.items():
        context.check_cancelled()
        loaded = _jit.load(str(folder / name), map_location=device)
        batch_sizes = batches or target.profile.batch_sizes
        result = parity.compare(_Loaded(loaded, DTYPES[precision]), eager, inputs=inputs, batch_sizes=batch_sizes, precision=precision)
        if not result.passed:
            raise errors.failed_precondition("PARITY_FAILED", f"{name} does not agree with eager PyTorch: {result}; it is not published")
        figures[name] = result.to_json()
    return _metadata(source, target, precision, inputs, figures)


def _write(
    source: Source, target: Target, precision: Precision, inputs: Inputs, folder: Path, context: JobContext
) -> dict[str, tuple[int, ...]]:
    """Writes the files; gives the batches that each is limited to. The module is gone before they are compared: it takes gigabytes."""
    module = load_module(source.folder, Role.UNET, dtype=DTYPES[precision], device=target.fingerprint.device).requires_grad_(False)
    context.progress("tracing", 0, 2)
    files = {TRACED: _trace(module, inputs, folder / TRACED)}
    if target.backend is Backend.TENSORRT:
        context.progress("compiling", 1, 2)
        try:
            files[OPTIMIZED] = _optimize(module, inputs, folder / OPTIMIZED, batch=target.profile.batch_sizes[0])
        except ValueError as error:
            raise errors.failed_precondition("BUILD_FAILED", f"tensorrt cannot build this UNet: {error}") from error
    return files


class _Loaded:
    """A loaded module as a runner."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self._module = module
        self._dtype = dtype

    @torch.no_grad()
    def __call__(self, sample: torch.Tensor, timesteps: torch.Tensor, encoder_hidden_states: torch.Tensor, /) -> torch.Tensor:
        answer: torch.Tensor = self._module(sample.to(self._dtype), timesteps, encoder_hidden_states.to(self._dtype))
        return answer.to(sample.dtype)


def _trace(module: torch.nn.Module, inputs: Inputs, path: Path) -> tuple[int, ...]:
    """Traces for any batch; gives the batches that it is limited to (none)."""
    example = _example(module, inputs, TRACE_BATCH)
    with torch.no_grad(), warnings.catch_warnings():
        # It warns of every shape that became a constant; parity at several batches tells whether one mattered.
        warnings.simplefilter("ignore", category=_jit.TracerWarning)
        traced = _jit.trace(module, example, strict=False, check_trace=False)
    _jit.save(traced, str(path))
    return ()


def _optimize(module: torch.nn.Module, inputs: Inputs, path: Path, *, batch: int) -> tuple[int, ...]:
    """Compiles for one batch; gives it. FAILED_PRECONDITION (TENSORRT_NOT_INSTALLED) where TensorRT is missing."""
    torch_tensorrt = tensorrt.require()
    tensorrt.check_options(torch_tensorrt, tensorrt.BASE_OPTIONS)
    example = _example(module, inputs, batch)
    with torch.no_grad():
        exported = torch.export.export(module, example, strict=False)
        with tensorrt.refusals_as_value_errors(batch):
            compiled = torch_tensorrt.dynamo.compile(exported, arg_inputs=list(example), **tensorrt.BASE_OPTIONS)
        torch_tensorrt.save(compiled, str(path), output_format="torchscript", arg_inputs=list(example))
    return (batch,)


def _example(module: torch.nn.Module, inputs: Inputs, batch: int) -> tuple[torch.Tensor, ...]:
    dtype = next(module.parameters()).dtype
    return inputs.sample[:batch].to(dtype), inputs.timesteps[:batch], inputs.encoder_hidden_states[:batch].to(dtype)


def _metadata(source: Source, target: Target, precision: Precision, inputs: Inputs, figures: dict[str, Any]) -> dict[str, Any]:
    shapes = (inputs.sample.shape, inputs.timesteps.shape, inputs.encoder_hidden_states.shape)
    described = {name: ["B", *shape[1:]] for name, shape in zip(UNet.INPUTS, shapes, strict=True)}
    metadata: dict[str, Any] = {
        "graph": source.graph.digest,
        "device": target.fingerprint.device,
        "dtype": str(DTYPES[precision]).removeprefix("torch."),
        "shapes": described,
        # The skips of the UNet do not fit at other sizes; eager PyTorch takes them.
        "latent_sides": f"any multiple of {source.facts.unet_factor}",
        "fingerprint": target.fingerprint.to_json(),
        "parity": figures,
    }
    if OPTIMIZED in figures:
        metadata["optimized_shapes"] = {
            name: [target.profile.batch_sizes[0], *shape[1:]] for name, shape in zip(UNet.INPUTS, shapes, strict=True)
        }
    return metadata
