"""The smallest UNet there is: a build takes a C++ compiler a third of a minute whatever the size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.engines import engine as engines
from atelier.engines.backends import inductor
from atelier.engines.detect import detect
from atelier.engines.engine import Engine
from atelier.engines.manifest import Backend
from atelier.engines.parity import relative_l2

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


@pytest.fixture(scope="module")
def folder(smallest: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inductor")
    smallest.build(inductor, folder)
    return folder


@pytest.fixture
def engine(smallest: Any, folder: Path) -> Engine:
    return engines.load(folder, manifest=smallest.manifest(Backend.INDUCTOR), fingerprint=detect("cpu"))


def test_one_package_serves_two_fine_tunes_side_by_side(smallest: Any, engine: Engine) -> None:
    a, b = engine.open(smallest.a.weights), engine.open(smallest.b.weights)
    for _ in range(2):
        assert smallest.parity(a, smallest.a.eager).passed
        assert smallest.parity(b, smallest.b.eager).passed
    # The bias of the last convolution has four elements: what inductor would write into the code if it were let.
    other = engine.open({**smallest.a.weights, "conv_out.bias": smallest.a.weights["conv_out.bias"].float() + 1})
    rows = smallest.inputs.sample[:2], smallest.inputs.timesteps[:2], smallest.inputs.encoder_hidden_states[:2]
    assert torch.allclose(other(*rows), a(*rows) + 1, atol=1e-5)


def test_the_package_asks_for_every_weight(smallest: Any, folder: Path) -> None:
    content = json.loads((folder / "unet" / "inputs.json").read_text())
    assert {name.removeprefix("unet.") for name in content["weights"]} == set(smallest.a.weights)


def test_what_a_package_would_read_wrongly_is_made_right_or_refused(smallest: Any, engine: Engine) -> None:
    runner = engine.open(smallest.a.weights)
    sample, context = smallest.inputs.sample[:2], smallest.inputs.encoder_hidden_states[:2]
    timesteps = torch.tensor([700, 3])
    expected = smallest.a.eager(sample, timesteps, context)
    assert relative_l2(runner(sample.contiguous(), timesteps, context), expected) < 1e-4
    assert relative_l2(runner(sample.to(memory_format=torch.channels_last), timesteps.int(), context), expected) < 1e-4
    with pytest.raises(ValueError, match=r"a batch of 3 is not among the engine's \[2, 6\]"):
        runner(smallest.inputs.sample[:3], smallest.inputs.timesteps[:3], smallest.inputs.encoder_hidden_states[:3])
    with pytest.raises(ValueError, match="sample has shape"):
        runner(torch.zeros(2, 4, 16, 16), timesteps, context)


def test_weights_are_brought_into_the_layout_of_the_package(smallest: Any, engine: Engine) -> None:
    weights = {
        name: tensor.float().to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.double()
        for name, tensor in smallest.a.weights.items()
    }
    assert smallest.parity(engine.open(weights), smallest.a.eager).passed


def test_weights_that_do_not_fit_are_refused_before_the_package_sees_them(smallest: Any, engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"unet.conv_out.bias has shape \[5\]"):
        engine.open({**smallest.a.weights, "conv_out.bias": torch.zeros(5)})
    with pytest.raises(ValueError, match="lack"):
        engine.open({})


def test_an_inductor_engine_has_one_form(smallest: Any, engine: Engine) -> None:
    assert not engine.can_bind
    with pytest.raises(ValueError, match="one form"):
        engine.bind(smallest.a.weights)
