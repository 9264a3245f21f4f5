"""What a compilation shall do, checked. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from atelier.engines.manifest import Backend, Precision
from atelier.engines.profile import batch_sizes_problem, side_problem
from atelier.errors import Violation

DEVICES = {Backend.OPENVINO: ("cpu",), Backend.TENSORRT: ("cuda",), Backend.INDUCTOR: ("cpu", "cuda")}
"""On which kinds of device a backend runs."""
PRECISIONS = {"cpu": (Precision.FP32, Precision.BF16), "cuda": (Precision.FP32, Precision.BF16, Precision.FP16)}
"""What can be computed in on a kind of device."""


class Output(StrEnum):
    """What is written."""

    ENGINE = "ENGINE"
    TORCHSCRIPT = "TORCHSCRIPT"


@dataclass(frozen=True, kw_only=True)
class CompileSpec:
    """One compilation. None, 0 and () stand for what only the worker can know: its device's defaults, the model's own size."""

    model: str
    backend: Backend | None = None
    precision: Precision | None = None
    width: int = 0
    height: int = 0
    batch_sizes: tuple[int, ...] = ()
    output: Output = Output.ENGINE
    force: bool = False


def violations(spec: CompileSpec, *, device: str) -> list[Violation]:
    """Everything that is wrong with a compilation for a device of the kind `cpu` or `cuda`."""
    found = []
    for side, pixels in (("width", spec.width), ("height", spec.height)):
        if pixels and (problem := side_problem(pixels)):
            found.append(Violation(f"profile.{side}", problem))
    if spec.batch_sizes and (problem := batch_sizes_problem(spec.batch_sizes)):
        found.append(Violation("profile.batch_sizes", problem))
    if spec.backend and device not in DEVICES[spec.backend]:
        there = [str(backend) for backend, devices in DEVICES.items() if device in devices]
        found.append(Violation("backend", f"{spec.backend} does not run on the pool's device ({device}); there are {_listed(there)}"))
    if spec.precision and spec.precision not in PRECISIONS[device]:
        found.append(Violation("precision", f"{spec.precision} needs a CUDA device; on {device} there are {_listed(PRECISIONS[device])}"))
    return found


def plan(spec: CompileSpec, *, pool: str) -> list[str]:
    """What will be done, in lines for people."""
    backend = spec.backend or "the device's default backend"
    precision = spec.precision or "the device's best precision"
    sides = [
        f"{pixels} pixels" if pixels else f"the model's own {side}" for side, pixels in (("width", spec.width), ("height", spec.height))
    ]
    size = f"pictures of {' x '.join(sides)}" if spec.width or spec.height else "pictures of the model's own size"
    if spec.output is Output.TORCHSCRIPT:
        also = ", and once more compiled by TensorRT" if spec.backend is Backend.TENSORRT else ""
        return [f"the UNet of {spec.model} as TorchScript with its weights, traced on pools/{pool}{also}", size]
    return [
        f"the UNet of {spec.model}, compiled for pools/{pool} with {backend} in {precision}",
        f"{size}, {f'batches {_listed(spec.batch_sizes)}' if spec.batch_sizes else 'the usual batches for such a size'}",
        "compared with eager PyTorch at four timesteps, and measured, before it is published",
        "anew, although there may be such an engine" if spec.force else "an engine that is there already for all this is the result",
    ]


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))
