"""OpenVINO: a graph whose weights are inputs, so that one program serves every fine-tune; or bound, with one model's weights inside.

`build` exports the graph with random weights that are all distinct, finds each among OpenVINO's constants by its bytes, and makes it an
input. The intermediate representation is data, not code, and knows no machine; `load` compiles it, once for each batch of the profile,
since static shapes are a third faster than a dynamic batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import Tensor

from atelier.engines import parity
from atelier.engines.backends.openvino_weights import Layout, insert_weights, open_weights
from atelier.engines.manifest import EngineManifest, Precision
from atelier.engines.profile import ShapeProfile
from atelier.engines.program import Program
from atelier.graphs.weights import distinct_weights

MODEL_FILE = "model.xml"
INPUTS_FILE = "inputs.json"
WARM_UP_MILLISECONDS = 250
HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16"}


def build(program: Program, target: Path) -> None:
    """Writes the engine of a program into the folder `target`. ValueError for a precision that OpenVINO has not, or a weight not found."""
    if program.precision not in HINTS:
        raise ValueError(f"OpenVINO computes in fp32 or bf16, not in {program.precision}")
    exported = program.export(torch.float32, layout=torch.contiguous_format)
    shapes = {
        name: (0, *example.shape[1:])
        for name, example in zip(program.input_names, program.inputs(2, torch.float32, torch.contiguous_format), strict=True)
    }
    model = ov.convert_model(exported)
    found = open_weights(model, distinct_weights(program.graph), ov.Type.bf16 if program.precision is Precision.BF16 else ov.Type.f32)
    ov.save_model(model, target / MODEL_FILE, compress_to_fp16=False)
    Layout(inputs=shapes, weights=found).write(target / INPUTS_FILE)


def load(folder: Path, *, manifest: EngineManifest, num_threads: int = 0) -> OpenVINOEngine:
    """Compiles the engine in `folder` with its weights as inputs, once for each batch of its profile."""
    return OpenVINOEngine(folder, manifest=manifest, num_threads=num_threads)


class OpenVINOEngine:
    """See `engine.Engine`."""

    can_bind = True

    def __init__(self, folder: Path, *, manifest: EngineManifest, num_threads: int = 0) -> None:
        self.manifest = manifest
        self._core = ov.Core()
        self._path = folder / MODEL_FILE
        self._layout = Layout.read(folder / INPUTS_FILE)
        self._dtype = torch.bfloat16 if manifest.precision is Precision.BF16 else torch.float32
        self._settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[manifest.precision]}
        if num_threads:
            self._settings["INFERENCE_NUM_THREADS"] = num_threads
        self._compiled: dict[int, Any] = {}
        for batch in self.profile.batch_sizes:
            self._compiled[batch] = self._compile(self._core.read_model(self._path), batch)
            self._warm_up(self._compiled[batch])

    @property
    def profile(self) -> ShapeProfile:
        """See `engine.Engine`."""
        return self.manifest.profile

    def open(self, weights: Mapping[str, Tensor]) -> OpenVINORunner:
        """See `engine.Engine`."""
        self._layout.check(weights)
        tensors = {entry.name: entry.fit(weights[name].detach(), self._dtype) for name, entry in self._layout.weights.items()}
        requests = {batch: self._request(compiled, tensors) for batch, compiled in self._compiled.items()}
        return OpenVINORunner(requests, inputs=self._layout.inputs, kept=tensors)

    def bind(self, weights: Mapping[str, Tensor], *, batch_sizes: Sequence[int] = ()) -> OpenVINORunner:
        """See `engine.Engine`. About a second for each batch at the base model's size, and a copy of the weights for each."""
        opened = self.open(weights)
        bound = {batch: self._bind(weights, batch) for batch in batch_sizes or self.profile.batch_sizes}
        runner = OpenVINORunner({**opened.requests, **bound}, inputs=self._layout.inputs, kept=opened.kept)
        result = parity.compare(
            runner, opened, inputs=self._parity_inputs(), batch_sizes=self.profile.batch_sizes, precision=self.manifest.precision
        )
        if not result.passed:
            raise ValueError(f"the engine with weights inside does not agree with the one without: {result}")
        return runner

    def _bind(self, weights: Mapping[str, Tensor], batch: int) -> Any:
        model = self._core.read_model(self._path)
        insert_weights(model, weights, self._layout.weights)
        return self._compile(model, batch).create_infer_request()

    def _parity_inputs(self) -> parity.Inputs:
        sample, _, context = self._layout.inputs.values()
        rows = max(parity.NUM_TIMESTEPS, *self.profile.batch_sizes)
        return parity.Inputs.make(sample=sample[1:], context=context[1:], rows=rows)

    def _compile(self, model: Any, batch: int) -> Any:
        names = {name: port for port in model.inputs for name in port.get_names()}
        model.reshape({names[name]: [batch, *shape[1:]] for name, shape in self._layout.inputs.items()})
        return self._core.compile_model(model, "CPU", self._settings)

    def _warm_up(self, compiled: Any) -> None:
        """Begins a forward with zeros for weights, and waits for a quarter of a second at most.

        So the first picture is as fast as the second, and OpenVINO frees what it has allocated for weights, since it gets them from
        outside: 3.6 GB a batch at SD 1.5's size, where a quarter of a second is enough for that and a whole forward takes many.
        """
        largest = max(math.prod(entry.program_shape) for entry in self._layout.weights.values())
        zeros = torch.zeros(largest, dtype=self._dtype)
        tensors = {e.name: zeros[: math.prod(e.program_shape)].view(e.program_shape) for e in self._layout.weights.values()}
        request = self._request(compiled, tensors)
        request.start_async()
        if not request.wait_for(WARM_UP_MILLISECONDS):
            request.cancel()
            with suppress(RuntimeError):  # says that it was cancelled
                request.wait()

    def _request(self, compiled: Any, tensors: Mapping[str, Tensor]) -> Any:
        request = compiled.create_infer_request()
        # A weight that is not set is no error to OpenVINO, so every input is accounted for.
        for port in compiled.inputs:
            if names := port.get_names() & tensors.keys():
                request.set_tensor(port, _as_openvino(tensors[names.pop()]))
            else:
                assert port.get_names() & self._layout.inputs.keys(), f"nobody sets the input {port.get_names()}"
        return request


class OpenVINORunner:
    """See `engine.Runner`."""

    def __init__(self, requests: Mapping[int, Any], *, inputs: Mapping[str, Sequence[int]], kept: Mapping[str, Tensor]) -> None:
        self.requests = requests
        self.kept = kept  # the requests point at these tensors
        self._inputs = inputs

    def __call__(self, *inputs: Tensor) -> Tensor:
        """See `engine.Runner`."""
        batch = inputs[0].shape[0]
        if batch not in self.requests:
            raise ValueError(f"a batch of {batch} is not among the engine's {sorted(self.requests)}")
        arrays = {}
        for (name, shape), tensor in zip(self._inputs.items(), inputs, strict=True):
            if tuple(tensor.shape) != (batch, *shape[1:]):
                raise ValueError(f"{name} has shape {list(tensor.shape)}, the engine takes {[batch, *shape[1:]]}")
            arrays[name] = (tensor.float() if tensor.is_floating_point() or len(shape) == 1 else tensor).contiguous().numpy()
        answer = self.requests[batch].infer(arrays, share_inputs=True, share_outputs=True)[0]
        dtype = inputs[0].dtype if inputs[0].is_floating_point() else torch.float32
        return torch.from_numpy(np.array(answer)).to(dtype)  # a copy: the request's own output is written over by the next call


def _as_openvino(tensor: Tensor) -> Any:
    if tensor.dtype is not torch.bfloat16:
        return ov.Tensor(tensor.numpy(), shared_memory=True)
    return ov.Tensor(tensor.view(torch.int16).numpy().view(np.uint16), ov.Shape(list(tensor.shape)), ov.Type.bf16)
