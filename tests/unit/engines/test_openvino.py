"""Expected values come from eager PyTorch; the engine was built from a model with random weights that are neither a's nor b's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.engines import engine as engines
from atelier.engines.backends import openvino
from atelier.engines.backends.openvino_weights import Layout
from atelier.engines.detect import detect
from atelier.engines.engine import Engine
from atelier.engines.manifest import Backend, Precision
from atelier.engines.parity import relative_l2
from atelier.engines.program import Program
from atelier.graphs.graph import Role, read_graph
from atelier.graphs.modules import load_module
from atelier.graphs.weights import graph_weights


@pytest.fixture(scope="module")
def engine(tiny: Any, openvino_folder: Path) -> Engine:
    return engines.load(openvino_folder, manifest=tiny.manifest(Backend.OPENVINO), fingerprint=detect("cpu"), num_threads=1)


def test_one_engine_serves_two_fine_tunes_side_by_side(tiny: Any, engine: Engine) -> None:
    a, b = engine.open(tiny.a.weights), engine.open(tiny.b.weights)
    for _ in range(2):
        assert tiny.parity(a, tiny.a.eager).passed
        assert tiny.parity(b, tiny.b.eager).passed
    assert not tiny.parity(a, tiny.b.eager).passed, "the two are different models"


def test_an_engine_holds_no_weights(tiny: Any, openvino_folder: Path) -> None:
    size = sum(path.stat().st_size for path in openvino_folder.rglob("*.bin"))
    assert size < 10_000 < sum(tensor.nbytes for tensor in tiny.a.weights.values())


def test_a_bound_engine_agrees(tiny: Any, engine: Engine) -> None:
    assert tiny.parity(engine.bind(tiny.b.weights), tiny.b.eager).passed


def test_an_engine_bound_for_some_batches_takes_them_all(tiny: Any, engine: Engine) -> None:
    assert tiny.parity(engine.bind(tiny.a.weights, batch_sizes=(2,)), tiny.a.eager).passed


def test_a_bound_engine_that_does_not_agree_is_refused(tiny: Any, engine: Engine) -> None:
    weights = {**tiny.a.weights, "conv_in.bias": torch.full_like(tiny.a.weights["conv_in.bias"], torch.nan)}
    with pytest.raises(ValueError, match="does not agree"):
        engine.bind(weights)


def test_an_answer_stays_when_the_runner_is_called_again(tiny: Any, engine: Engine) -> None:
    runner = engine.open(tiny.a.weights)
    rows = tiny.inputs.sample[:2], tiny.inputs.timesteps[:2], tiny.inputs.encoder_hidden_states[:2]
    first = runner(*rows)
    copy = first.clone()
    runner(-rows[0], rows[1], rows[2])
    assert torch.equal(first, copy)


def test_timesteps_may_be_fractions_and_differ_in_a_batch(tiny: Any, engine: Engine) -> None:
    sample, context = tiny.inputs.sample[:2], tiny.inputs.encoder_hidden_states[:2]
    timesteps = torch.tensor([946.42, 3.0])
    expected = tiny.a.eager(sample, timesteps, context)
    assert relative_l2(engine.open(tiny.a.weights)(sample, timesteps, context), expected) < 1e-4


def test_inputs_of_another_dtype_or_layout_are_taken(tiny: Any, engine: Engine) -> None:
    sample, context = tiny.inputs.sample[:2], tiny.inputs.encoder_hidden_states[:2]
    timesteps = torch.tensor([700, 3])
    expected = tiny.a.eager(sample, timesteps, context)
    runner = engine.open(tiny.a.weights)
    strided = sample.to(memory_format=torch.channels_last), timesteps, context.transpose(1, 2).contiguous().transpose(1, 2)
    assert relative_l2(runner(*strided), expected) < 1e-4
    half = runner(sample.half(), timesteps, context.half())
    assert half.dtype is torch.float16
    assert relative_l2(half, expected) < 1e-2


@pytest.mark.parametrize(("rows", "word"), [(1, r"a batch of 1 is not among the engine's \[2, 6\]"), (3, "batch of 3")])
def test_a_batch_without_a_program_is_refused(tiny: Any, engine: Engine, rows: int, word: str) -> None:
    runner = engine.open(tiny.a.weights)
    with pytest.raises(ValueError, match=word):
        runner(tiny.inputs.sample[:rows], tiny.inputs.timesteps[:rows], tiny.inputs.encoder_hidden_states[:rows])


def test_another_size_is_refused(tiny: Any, engine: Engine) -> None:
    runner = engine.open(tiny.a.weights)
    with pytest.raises(ValueError, match=r"sample has shape \[2, 4, 16, 16\], the engine takes \[2, 4, 8, 8\]"):
        runner(torch.zeros(2, 4, 16, 16), torch.zeros(2), tiny.inputs.encoder_hidden_states[:2])


def test_weights_that_do_not_fit_are_refused(tiny: Any, engine: Engine) -> None:
    without = {name: tensor for name, tensor in tiny.a.weights.items() if name != "conv_out.bias"}
    with pytest.raises(ValueError, match="lack 'conv_out\\.bias'"):
        engine.open(without)
    with pytest.raises(ValueError, match="has shape"):
        engine.open({**without, "conv_out.bias": torch.zeros(5)})


def test_bf16_engines_hold_half_of_the_weights_bytes(smallest: Any, tmp_path: Path) -> None:
    program = Program(
        model=smallest.a.folder, graph=smallest.graph, facts=smallest.facts, profile=smallest.profile, precision=Precision.BF16
    )
    openvino.build(program, tmp_path)
    engine = openvino.load(tmp_path, manifest=smallest.manifest(Backend.OPENVINO, Precision.BF16))
    opened = engine.open(smallest.a.weights)
    assert {tensor.dtype for tensor in opened.kept.values()} == {torch.bfloat16}
    rows = smallest.inputs.sample[:2], smallest.inputs.timesteps[:2], smallest.inputs.encoder_hidden_states[:2]
    # Random weights magnify rounding; trained ones stay below 1e-2.
    assert relative_l2(opened(*rows), smallest.a.eager(*rows)) < 0.2


def test_fp16_is_not_for_openvino(tiny: Any, tmp_path: Path) -> None:
    program = Program(model=tiny.a.folder, graph=tiny.graph, facts=tiny.facts, profile=tiny.profile, precision=Precision.FP16)
    with pytest.raises(ValueError, match="fp32 or bf16, not in fp16"):
        openvino.build(program, tmp_path)


@pytest.mark.parametrize("role", [Role.VAE_DECODER, Role.TEXT_ENCODER])
@torch.no_grad()
def test_the_other_graphs_compile_too(tiny: Any, role: Role, tmp_path: Path) -> None:
    folder = tiny.b.folder
    program = Program(model=folder, graph=read_graph(folder, role), facts=tiny.facts, profile=tiny.profile, precision=Precision.FP32)
    openvino.build(program, tmp_path)
    assert set(Layout.read(tmp_path / "inputs.json").weights) == set(graph_weights(folder, role))
    runner = openvino.load(tmp_path, manifest=tiny.manifest(Backend.OPENVINO)).open(graph_weights(folder, role))
    inputs = program.inputs(6, torch.float32, torch.contiguous_format)
    assert relative_l2(runner(*inputs), load_module(folder, role)(*inputs)) < 1e-4
