"""Runners stand in for compiled ones: what is decided about them is the same."""

from __future__ import annotations

import time

import pytest
from torch import Tensor

from atelier.compiler.benchmark import faster_precision, milliseconds
from atelier.compiler.compilation import verify
from atelier.engines.fingerprint import Fingerprint
from atelier.engines.manifest import Backend, EngineManifest, Precision
from atelier.engines.parity import Inputs
from atelier.engines.profile import ShapeProfile
from atelier.errors import AtelierError

INPUTS = Inputs.make(sample=(4, 8, 8), context=(77, 16), rows=4)


def manifest(precision: Precision) -> EngineManifest:
    return EngineManifest(
        graph="g" * 64,
        fingerprint=Fingerprint(device="cpu", product="cpu", capability="", torch="2", backends={"openvino": "1"}),
        backend=Backend.OPENVINO,
        precision=precision,
        profile=ShapeProfile(width=64, height=64, batch_sizes=(2, 4)),
    )


def eager(sample: Tensor, timesteps: Tensor, context: Tensor, /) -> Tensor:
    return sample * timesteps[:, None, None, None]


def off(sample: Tensor, timesteps: Tensor, context: Tensor, /) -> Tensor:
    return eager(sample, timesteps, context) * 1.001


class Sleeping:
    """Takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, sample: Tensor, timesteps: Tensor, context: Tensor, /) -> Tensor:
        time.sleep(self.seconds)
        return sample


def test_an_engine_that_is_off_is_refused_with_the_figures() -> None:
    with pytest.raises(AtelierError) as caught:
        verify(off, eager, INPUTS, manifest(Precision.FP32))
    assert caught.value.reason == "PARITY_FAILED"
    assert caught.value.metadata == {"bound": "0.0001", "batch_2": "0.001", "batch_4": "0.001"}
    assert "batch 2: 0.001" in caught.value.message


def test_bf16_may_be_off_by_more() -> None:
    result = verify(off, eager, INPUTS, manifest(Precision.BF16))
    assert result.to_json() == {"bound": 0.05, "relative_l2": {"2": pytest.approx(0.001, rel=1e-2), "4": pytest.approx(0.001, rel=1e-2)}}


@pytest.mark.parametrize(("fp32", "bf16", "chosen"), [(0.02, 0.01, "bf16"), (0.01, 0.01, "fp32"), (0.01, 0.02, "fp32")])
def test_bf16_is_taken_where_it_is_clearly_faster(fp32: float, bf16: float, chosen: str) -> None:
    assert faster_precision(fp32=Sleeping(fp32), bf16=Sleeping(bf16), inputs=INPUTS, batch=2) == chosen


def test_large_unets_are_probed_twice() -> None:
    calls: list[float] = []

    class Large(Sleeping):
        def __call__(self, sample: Tensor, timesteps: Tensor, context: Tensor, /) -> Tensor:
            calls.append(self.seconds)
            return super().__call__(sample, timesteps, context)

    assert faster_precision(fp32=Large(0.05), bf16=Large(0.01), inputs=INPUTS, batch=2, probing_seconds=0.1) == "bf16"
    assert calls == [0.05, 0.01] * 2


def test_a_forward_is_measured_in_milliseconds() -> None:
    assert 20 <= milliseconds(Sleeping(0.02), INPUTS, batch=2) < 200
