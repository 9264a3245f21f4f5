"""AOTInductor: a package of native code without weights, which are handed to each loaded copy of it as pointers.

One package takes every batch: measured on a CPU at the base model's size, a dynamic batch is as fast as a static one and is built once
instead of once a batch. The package checks neither its inputs nor its weights, and reads other memory where they are not what it was
built for; everything is therefore checked here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from atelier.engines.manifest import EngineManifest
from atelier.engines.profile import ShapeProfile
from atelier.engines.program import DTYPES, Program
from atelier.graphs.weights import check_weights

PACKAGE_FILE = "model.pt2"
INPUTS_FILE = "inputs.json"
CONSTANTS_FILE = "constants.safetensors"
OPTIONS: Mapping[str, Any] = {
    "aot_inductor.package_constants_in_so": False,
    # Else tensors of up to 8 elements are written into the code as numbers, and another model's are ignored without a word.
    "always_keep_tensor_constants": True,
}
CUDA_OPTIONS: Mapping[str, Any] = {"max_autotune": True}


def build(program: Program, target: Path) -> None:
    """Writes the engine of a program into the folder `target`.

    Raises ValueError where no C++ compiler is installed, or where the package does not ask for exactly the graph's weights.
    """
    _check_compiler()
    # Channels last: else convolutions turn their weights at every call.
    exported = program.export(program.dtype, layout=torch.channels_last)
    options = {**OPTIONS, **(CUDA_OPTIONS if program.device != "cpu" else {})}
    package = target / PACKAGE_FILE
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(exported, package_path=str(package), inductor_configs=options)
    weights = {name: _layout(tensor) for name, tensor in exported.state_dict.items()}
    # What is no weight but a table, as the positions of a text encoder, is the engine's own.
    constants = {name: tensor for name, tensor in exported.constants.items() if isinstance(tensor, Tensor)}
    _check_names(package, wanted=weights.keys() | constants.keys())
    save_file(constants, target / CONSTANTS_FILE)
    shapes = [list(example.shape[1:]) for example in program.inputs(2, program.dtype, torch.channels_last)]
    content = {"inputs": dict(zip(program.input_names, shapes, strict=True)), "prefix": program.prefix, "weights": weights}
    (target / INPUTS_FILE).write_text(json.dumps(content, indent=1) + "\n")


def load(folder: Path, *, manifest: EngineManifest, device: str = "cpu") -> InductorEngine:
    """The engine in `folder`; no code of it runs before `open`."""
    return InductorEngine(folder, manifest=manifest, device=device)


class InductorEngine:
    """See `engine.Engine`."""

    can_bind = False

    def __init__(self, folder: Path, *, manifest: EngineManifest, device: str) -> None:
        self.manifest = manifest
        self._package = folder / PACKAGE_FILE
        self._device = torch.device(device)
        content = json.loads((folder / INPUTS_FILE).read_bytes())
        self._inputs: dict[str, list[int]] = content["inputs"]
        self._prefix: str = content["prefix"]
        self._weights: dict[str, dict[str, list[int]]] = content["weights"]

    @property
    def profile(self) -> ShapeProfile:
        """See `engine.Engine`."""
        return self.manifest.profile

    def open(self, weights: Mapping[str, Tensor]) -> InductorRunner:
        """See `engine.Engine`. Each runner loads the package anew (megabytes): a copy has one set of weights."""
        own = {self._prefix + name: tensor for name, tensor in weights.items()}
        check_weights(own, {name: tuple(entry["shape"]) for name, entry in self._weights.items()})
        dtype = DTYPES[self.manifest.precision]
        fitted = {name: self._fit(own[name], entry["stride"], dtype) for name, entry in self._weights.items()}
        fitted |= load_file(self._package.with_name(CONSTANTS_FILE), device=str(self._device))
        index = -1 if self._device.index is None else self._device.index
        package = torch._inductor.aoti_load_package(str(self._package), device_index=index)
        # Called without weights, a package takes the process down; no runner exists before this line.
        package.load_constants(fitted, check_full_update=True, user_managed=True)
        return InductorRunner(package, manifest=self.manifest, inputs=self._inputs, kept=fitted)

    def bind(self, weights: Mapping[str, Tensor], *, batch_sizes: tuple[int, ...] = ()) -> InductorRunner:
        """See `engine.Engine`: always ValueError."""
        raise ValueError("an inductor engine has one form only")

    def _fit(self, weight: Tensor, stride: list[int], dtype: torch.dtype) -> Tensor:
        detached = weight.detach()
        if detached.dtype is dtype and detached.device == self._device and list(detached.stride()) == stride:
            return detached
        return torch.empty_strided(weight.shape, stride, dtype=dtype, device=self._device).copy_(detached)


class InductorRunner:
    """See `engine.Runner`."""

    def __init__(self, package: Any, *, manifest: EngineManifest, inputs: Mapping[str, list[int]], kept: Mapping[str, Tensor]) -> None:
        self._package = package
        self._batch_sizes = manifest.profile.batch_sizes
        self._dtype = DTYPES[manifest.precision]
        self._inputs = inputs
        self._kept = kept  # the package points at these tensors

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """See `engine.Runner`."""
        batch = inputs[0].shape[0]
        if batch not in self._batch_sizes:
            raise ValueError(f"a batch of {batch} is not among the engine's {list(self._batch_sizes)}")
        fitted = []
        for (name, shape), tensor in zip(self._inputs.items(), inputs, strict=True):
            if tuple(tensor.shape) != (batch, *shape):
                raise ValueError(f"{name} has shape {list(tensor.shape)}, the engine takes {[batch, *shape]}")
            fitted.append(self._fit(tensor))
        # As it was compared: without TF32, which would be PyTorch's default for convolutions on CUDA.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            answer: Tensor = self._package(*fitted)
        return answer.to(inputs[0].dtype if inputs[0].is_floating_point() else torch.float32)

    def _fit(self, tensor: Tensor) -> Tensor:
        if tensor.ndim == 1:
            return tensor.to(torch.float32).contiguous()  # timesteps; whole numbers would be read as floats
        if not tensor.is_floating_point():
            return tensor.contiguous()
        layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
        return tensor.to(self._dtype).contiguous(memory_format=layout)


def _layout(tensor: Tensor) -> dict[str, list[int]]:
    return {"shape": list(tensor.shape), "stride": list(tensor.stride())}


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ValueError("inductor needs a C++ compiler; install g++, or compile with backend openvino") from None


def _check_names(package: Path, *, wanted: set[str]) -> None:
    found = set(torch._inductor.aoti_load_package(str(package)).get_constant_fqns())
    if found != wanted:
        raise ValueError(f"the package does not ask for the graph's weights: {sorted(found ^ wanted)[:4]} ({len(found ^ wanted)} in all)")
