"""What can be known without TensorRT."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from atelier.engines.backends import tensorrt, tensorrt_runtime
from atelier.engines.manifest import Backend
from atelier.errors import AtelierError, Status

TEMPLATE = {"conv.weight": torch.randn(4, 3, 3, 3), "norm.weight": torch.randn(4).bfloat16(), "conv.bias": torch.randn(4)}


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_where_tensorrt_is_missing_the_message_says_what_to_do() -> None:
    with pytest.raises(AtelierError) as caught:
        tensorrt.require()
    assert (caught.value.status, caught.value.reason) == (Status.FAILED_PRECONDITION, "TENSORRT_NOT_INSTALLED")
    assert "extra `tensorrt`" in caught.value.message
    assert "backend inductor" in caught.value.message


def test_weights_of_a_plan_are_found_by_their_bytes() -> None:
    recorded = {
        "[CONVOLUTION]-[aten]-[a] KERNEL": TEMPLATE["conv.weight"].clone(),
        "[CONVOLUTION]-[aten]-[a] BIAS": TEMPLATE["conv.bias"].clone(),
        # Another shape and a wider type, as normalizations have it.
        "b CONSTANT": TEMPLATE["norm.weight"].float().reshape(1, 4, 1, 1),
        "one CONSTANT": torch.tensor(1.0),
    }
    found, rest = tensorrt.map_weights(recorded, TEMPLATE)
    assert found == {
        "[CONVOLUTION]-[aten]-[a] KERNEL": "conv.weight",
        "[CONVOLUTION]-[aten]-[a] BIAS": "conv.bias",
        "b CONSTANT": "norm.weight",
    }
    assert list(rest) == ["one CONSTANT"]


def test_a_weight_that_was_folded_into_another_is_named() -> None:
    recorded = {"a": TEMPLATE["conv.weight"] * TEMPLATE["conv.bias"][:, None, None, None], "b": TEMPLATE["norm.weight"]}
    with pytest.raises(ValueError, match=r"no weight 'conv.bias' any more \(2 in all\)"):
        tensorrt.map_weights(recorded, TEMPLATE)


def test_an_option_that_torch_tensorrt_would_swallow_is_refused() -> None:
    @dataclass
    class CompilationSettings:
        truncate_double: bool = False

    library = SimpleNamespace(dynamo=SimpleNamespace(CompilationSettings=CompilationSettings))
    tensorrt.check_options(library, {"truncate_double": True})
    with pytest.raises(ValueError, match="no option enabled_precisions"):
        tensorrt.check_options(library, {"truncate_double": True, "enabled_precisions": {"half"}})


@pytest.mark.parametrize("refusal", [RuntimeError("an operation"), AssertionError()])
def test_a_conversion_that_fails_names_its_batch(refusal: Exception) -> None:
    with pytest.raises(ValueError, match="no plan for batch 4; the worker's log"), tensorrt.refusals_as_value_errors(4):
        raise refusal


def test_what_is_put_into_a_network_is_recorded_meanwhile_and_only_then() -> None:
    class ConversionContext:
        def __init__(self) -> None:
            self.held: dict[str, torch.Tensor] = {}

        def record_weight(self, name: str, weight: torch.Tensor) -> None:
            self.held[name] = weight

    conversion = SimpleNamespace(ConversionContext=ConversionContext)
    library = SimpleNamespace(dynamo=SimpleNamespace(conversion=conversion))
    context, weight = ConversionContext(), torch.ones(2)
    with tensorrt.recorded_weights(library) as recorded:
        context.record_weight("a KERNEL", weight)
    context.record_weight("b KERNEL", weight)
    assert recorded.keys() == {"a KERNEL"}
    assert recorded["a KERNEL"].data_ptr() != weight.data_ptr(), "Torch-TensorRT may free or change its own"
    assert context.held.keys() == {"a KERNEL", "b KERNEL"}, "Torch-TensorRT's own record is kept"


class Refitter:
    """TensorRT's, as far as a refit goes before it reaches the device."""

    refused = ""

    def __init__(self, engine: list[str], logger: object) -> None:
        self.engine = engine

    def get_all_weights(self) -> list[str]:
        return self.engine

    def get_weights_prototype(self, name: str) -> Any:
        return SimpleNamespace(dtype="float")

    def set_named_weights(self, name: str, weights: object, location: str) -> bool:
        return name != self.refused


def library(plan: list[str] | None, *, refused: str = "") -> Any:
    logger = type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None})
    names = {name: name.lower() for name in ("FLOAT", "HALF", "BF16", "INT32", "INT64", "BOOL")}
    return SimpleNamespace(
        __version__="11.1",
        Logger=logger,
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda content: plan),
        Refitter=type("Refitting", (Refitter,), {"refused": refused}),
        Weights=lambda dtype, address, count: (dtype, count),
        TensorLocation=SimpleNamespace(DEVICE="device"),
        DataType=SimpleNamespace(**names),
    )


@pytest.mark.parametrize(
    ("plan", "refused", "sentence"),
    [
        (None, "", "TensorRT 11.1 does not take the plan for batch 2"),
        (["k", "one", "new"], "", "nobody knows the weight 'new' of the plan for batch 2"),
        (["k", "one"], "one", "TensorRT refused the weight 'one' for batch 2"),
    ],
)
def test_a_plan_that_cannot_be_refitted_is_refused(tiny: Any, tmp_path: Path, plan: list[str] | None, refused: str, sentence: str) -> None:
    content = {"inputs": {}, "weights": {"conv.weight": [4, 3, 3, 3]}, "plans": {"2": {"k": "conv.weight"}}}
    (tmp_path / tensorrt.MAP_FILE).write_text(json.dumps(content))
    (tmp_path / "batch-2.plan").write_bytes(b"")
    save_file({"2/one": torch.ones(1)}, tmp_path / tensorrt.CONSTANTS_FILE)
    engine = tensorrt_runtime.TensorRTEngine(
        tmp_path, manifest=tiny.manifest(Backend.OPENVINO), device="cpu", trt=library(plan, refused=refused)
    )
    with pytest.raises(ValueError, match=sentence):
        engine.open({"conv.weight": TEMPLATE["conv.weight"]})
