"""The weights of an OpenVINO model: found among its constants, turned into inputs, and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as opset
from torch import Tensor

from atelier.graphs.weights import check_weights


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


def open_weights(model: Any, template: Mapping[str, Tensor], element_type: Any) -> dict[str, WeightInput]:
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


def insert_weights(model: Any, weights: Mapping[str, Tensor], entries: Mapping[str, WeightInput]) -> None:
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
