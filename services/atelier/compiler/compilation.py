"""From a model to an engine: build, verify, measure."""

from __future__ import annotations

import gc
import importlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atelier import errors
from atelier.compiler.benchmark import faster_precision, milliseconds
from atelier.compiler.profile import Target
from atelier.engines import engine as engines
from atelier.engines import parity
from atelier.engines.eager import EagerRunner
from atelier.engines.engine import Engine, Runner
from atelier.engines.manifest import EngineManifest, Precision
from atelier.engines.parity import Inputs
from atelier.engines.program import unet_program
from atelier.graphs.facts import Facts
from atelier.graphs.graph import Graph
from atelier.graphs.model import empty_part, fill, load_unet
from atelier.jobs.context import JobContext

PHASES = ("probing", "building", "verifying", "measuring")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The model whose UNet is compiled."""

    folder: Path
    graph: Graph
    facts: Facts


def check_source(source: Source) -> None:
    """Raises INVALID_ARGUMENT (BAD_MODEL) for a UNet whose tensors are not those that its config asks for, before anything is loaded."""
    part = source.graph.role.part
    try:
        tensors = {name: torch.empty(shape, device="meta") for name, shape in source.graph.tensors.items()}
        fill(empty_part(source.folder, part), tensors, part=part)
    except ValueError as error:
        raise errors.invalid_field("model", str(error), reason="BAD_MODEL") from error


def compile_engine(source: Source, target: Target, folder: Path, context: JobContext) -> EngineManifest:
    """Writes an engine into `folder`, and says what it is. Where the target leaves the precision open, it is the faster one that agrees.

    Raises FAILED_PRECONDITION: PARITY_FAILED with the figures where it does not agree with eager PyTorch, BUILD_FAILED where the backend
    cannot build it.
    """
    if target.precision:
        return _compile(source, target, target.precision, folder, context)
    precision = _measured_precision(source, target, context)
    try:
        return _compile(source, target, precision, folder, context)
    except errors.AtelierError as error:
        if error.reason != "PARITY_FAILED" or precision is Precision.FP32:
            raise
        context.log(f"{error.message}; building in fp32", level="warning")
    # Not within `except`: the error holds the engine that failed, gigabytes at SD 1.5's size.
    gc.collect()
    shutil.rmtree(folder / source.graph.role)
    return _compile(source, target, Precision.FP32, folder, context)


def _compile(source: Source, target: Target, precision: Precision, folder: Path, context: JobContext) -> EngineManifest:
    device = target.fingerprint.device
    _enter("building", context)
    manifest = target.manifest(source.graph.digest, precision)
    _build(source, manifest, folder, device=device)
    engine = engines.load(folder, manifest=manifest, fingerprint=target.fingerprint, device=device, num_threads=torch.get_num_threads())
    _enter("verifying", context)
    inputs = Inputs.of_model(source.facts, target.profile, device=device)
    unet: Any = load_unet(source.folder, device=device)
    weights, eager = dict(unet.named_parameters()), EagerRunner(unet)
    runner = engine.open(weights)
    result = verify(runner, eager, inputs, manifest)
    _enter("measuring", context)
    figures = _measure(engine, runner, eager, inputs, weights, context)
    return replace(manifest, parity=result.to_json(), benchmark=figures)


def _enter(phase: str, context: JobContext) -> None:
    context.check_cancelled()
    context.progress(phase, PHASES.index(phase), len(PHASES))


def _measured_precision(source: Source, target: Target, context: JobContext) -> Precision:
    _enter("probing", context)
    inputs = Inputs.of_model(source.facts, target.profile)
    fp32, bf16 = (EagerRunner(load_unet(source.folder, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16))
    precision = faster_precision(fp32=fp32, bf16=bf16, inputs=inputs, batch=target.profile.batch_sizes[0])
    context.log(f"this processor runs the UNet fastest in {precision}")
    return precision


def _build(source: Source, manifest: EngineManifest, folder: Path, *, device: str) -> None:
    place = folder / source.graph.role
    place.mkdir(parents=True)
    program = unet_program(source.folder, source.graph, source.facts, profile=manifest.profile, precision=manifest.precision, device=device)
    backend = importlib.import_module(f"atelier.engines.backends.{manifest.backend}")
    try:
        backend.build(program, place)
    except ValueError as error:
        raise errors.failed_precondition("BUILD_FAILED", f"{manifest.backend} cannot build this UNet: {error}") from error
    # What torch.export made holds itself in cycles, and with it the random weights: as many bytes as the UNet.
    gc.collect()


def verify(runner: Runner, eager: Runner, inputs: Inputs, manifest: EngineManifest) -> parity.Parity:
    """How far an engine is off eager PyTorch. FAILED_PRECONDITION (PARITY_FAILED) with the figures where it is too far."""
    result = parity.compare(runner, eager, inputs=inputs, batch_sizes=manifest.profile.batch_sizes, precision=manifest.precision)
    if not result.passed:
        figures = {f"batch_{batch}": f"{error:.3g}" for batch, error in result.errors.items()}
        message = f"the engine does not agree with eager PyTorch: {result}; it is not published"
        raise errors.failed_precondition("PARITY_FAILED", message, bound=f"{result.bound:g}", **figures)
    return result


def _measure(
    engine: Engine, runner: Runner, eager: Runner, inputs: Inputs, weights: Mapping[str, Tensor], context: JobContext
) -> dict[str, Any]:
    smallest = engine.profile.batch_sizes[0]
    own = {str(batch): milliseconds(runner, inputs, batch=batch) for batch in engine.profile.batch_sizes}
    reference = milliseconds(eager, inputs, batch=smallest)
    figures: dict[str, Any] = {
        "milliseconds": own,
        "eager_fp32_milliseconds": {str(smallest): reference},
        "speedup": round(reference / own[str(smallest)], 2),
        "threads": torch.get_num_threads(),
    }
    if engine.can_bind:
        try:
            bound = milliseconds(engine.bind(weights, batch_sizes=(smallest,)), inputs, batch=smallest)
            figures |= {"bound_milliseconds": {str(smallest): bound}, "bound_speedup": round(reference / bound, 2)}
        except ValueError as error:
            context.log(str(error), level="warning")
    return figures
