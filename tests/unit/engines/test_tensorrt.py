"""What can be known without TensorRT."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from atelier.engines.backends import tensorrt
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
