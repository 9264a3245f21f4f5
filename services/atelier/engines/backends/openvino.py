"""OpenVINO: a graph whose weights are inputs, so that one program serves every fine-tune; or bound, with one model's weights inside.

`build` exports the graph with random weights that are all distinct, finds each among OpenVINO's constants by its bytes, and makes it an
input. The intermediate representation is data, not code, and knows no machine; `load` compiles it, once for each batch of the profile,
since static shapes are a third faster than a dynamic batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as opset
from torch import Tensor

from atelier.engines import parity
from atelier.engines.manifest import EngineManifest, Precision
from atelier.engines.profile import ShapeProfile
from atelier.engines.program import Program
from atelier.graphs.weights import check_weights, distinct_weights

MODEL_FILE = "model.xml"
INPUTS_FILE = "inputs.json"
HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16"}


@dataclass(frozen=True, kw_only=True)
class WeightInput:
    """How a weight enters the program: the name of its input, its shape in the model, the program's shape, and whether it is turned."""

    name: str
    shape: tuple[int, ...]
    program_shape: tuple[int, ...]
    transposed: bool

    def fit(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight as the program takes it; the same memory where dtype and form are right already."""
        turned = weight.T if self.transposed else weight
        return turned.to(dtype).contiguous().reshape(self.program_shape)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What `inputs.json` says: the inputs with their shapes (0 for the batch), and every weight by name."""

    inputs: Mapping[str, tuple[int, ...]]
    weights: Mapping[str, WeightInput]

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Raises ValueError that names a weight which is missing, surplus or of another shape."""
        check_weights(weights, {name: entry.shape for name, entry in self.weights.items()})

    def write(self, path: Path) -> None:
        """Writes it as JSON."""
        weights = {name: vars(entry) for name, entry in self.weights.items()}
        path.write_text(json.dumps({"inputs": self.inputs, "weights": weights}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Layout:
        """Reads what `write` wrote."""
        content = json.loads(path.read_bytes())
        weights = {
            name: WeightInput(
                name=entry["name"],
                shape=tuple(entry["shape"]),
                program_shape=tuple(entry["program_shape"]),
                transposed=entry["transposed"],
            )
            for name, entry in content["weights"].items()
        }
        return cls(inputs={name: tuple(shape) for name, shape in content["inputs"].items()}, weights=weights)


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
    found = _open_weights(model, distinct_weights(program.graph), ov.Type.bf16 if program.precision is Precision.BF16 else ov.Type.f32)
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
        self._settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[manifest.precision]}
        if num_threads:
            self._settings["INFERENCE_NUM_THREADS"] = num_threads
        self._compiled = {batch: self._compile(self._core.read_model(self._path), batch) for batch in self.profile.batch_sizes}

    @property
    def profile(self) -> ShapeProfile:
        """See `engine.Engine`."""
        return self.manifest.profile

    def open(self, weights: Mapping[str, Tensor]) -> OpenVINORunner:
        """See `engine.Engine`."""
        self._layout.check(weights)
        dtype = torch.bfloat16 if self.manifest.precision is Precision.BF16 else torch.float32
        tensors = {entry.name: entry.fit(weights[name].detach(), dtype) for name, entry in self._layout.weights.items()}
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
        _insert_weights(model, weights, self._layout.weights)
        return self._compile(model, batch).create_infer_request()

    def _parity_inputs(self) -> parity.Inputs:
        sample, _, context = self._layout.inputs.values()
        rows = max(parity.NUM_TIMESTEPS, *self.profile.batch_sizes)
        return parity.Inputs.make(sample=sample[1:], context=context[1:], rows=rows)

    def _compile(self, model: Any, batch: int) -> Any:
        names = {name: port for port in model.inputs for name in port.get_names()}
        model.reshape({names[name]: [batch, *shape[1:]] for name, shape in self._layout.inputs.items()})
        return self._core.compile_model(model, "CPU", self._settings)

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


def _open_weights(model: Any, template: Mapping[str, Tensor], element_type: Any) -> dict[str, WeightInput]:
    """Turns every constant that holds one of the template's weights into an input. ValueError for a weight that is not found."""
    known = _weights_by_bytes(template)
    found: dict[str, WeightInput] = {}
    parameters = {}
    for constant in [op for op in model.get_ops() if op.get_type_name() == "Constant"]:
        data = constant.data
        name, transposed = known.get(_digest(data), ("", False))
        if not name:
            continue
        entry = WeightInput(
            name=f"weight:{name}", shape=tuple(template[name].shape), program_shape=tuple(data.shape), transposed=transposed
        )
        if found.setdefault(name, entry) != entry:
            raise ValueError(f"OpenVINO uses {name} in two forms")
        if name not in parameters:
            parameters[name] = opset.parameter(list(data.shape), element_type, name=entry.name)
            parameters[name].output(0).get_tensor().set_names({entry.name})
        wanted = constant.get_element_type()
        source = parameters[name] if element_type == wanted else opset.convert(parameters[name], wanted.get_type_name())
        for target in list(constant.output(0).get_target_inputs()):
            target.replace_source_output(source.output(0))
    if missing := template.keys() - found.keys():
        raise ValueError(f"OpenVINO's program has no weight {min(missing)!r} any more ({len(missing)} in all)")
    model.add_parameters(list(parameters.values()))
    model.validate_nodes_and_infer_types()
    return found


def _weights_by_bytes(template: Mapping[str, Tensor]) -> dict[str, tuple[str, bool]]:
    """Digest of a weight's bytes -> its name and whether it is turned: as it is, and matrices also transposed."""
    known: dict[str, tuple[str, bool]] = {}
    for name, weight in template.items():
        array = weight.numpy()
        forms = [(array, False), (array.T, True)] if array.ndim == 2 and min(array.shape) > 1 else [(array, False)]
        for form, transposed in forms:
            assert known.setdefault(_digest(form), (name, transposed))[0] == name, f"two weights equal {name}"
    return known


def _insert_weights(model: Any, weights: Mapping[str, Tensor], entries: Mapping[str, WeightInput]) -> None:
    """Turns the inputs that are weights back into constants, with these values."""
    names = {entry.name: name for name, entry in entries.items()}
    for parameter in list(model.get_parameters()):
        name = next((names[n] for n in parameter.output(0).get_names() if n in names), "")
        if not name:
            continue
        array = entries[name].fit(weights[name].detach(), torch.float32).numpy()
        value = opset.constant(array, shared_memory=True)
        for target in _float_consumers(parameter):
            target.replace_source_output(value.output(0))
        model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()


def _float_consumers(parameter: Any) -> list[Any]:
    """The inputs that a weight feeds in fp32, be it through a conversion."""
    targets = list(parameter.output(0).get_target_inputs())
    if parameter.get_element_type() == ov.Type.f32:
        return targets
    return [consumer for target in targets for consumer in target.get_node().output(0).get_target_inputs()]


def _digest(array: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _as_openvino(tensor: Tensor) -> Any:
    if tensor.dtype is not torch.bfloat16:
        return ov.Tensor(tensor.numpy(), shared_memory=True)
    return ov.Tensor(tensor.view(torch.int16).numpy().view(np.uint16), ov.Shape(list(tensor.shape)), ov.Type.bf16)
