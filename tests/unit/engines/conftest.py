"""Two tiny models of one graph, and an OpenVINO engine for both, built once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.engines import parity
from atelier.engines.backends import openvino
from atelier.engines.detect import detect
from atelier.engines.eager import EagerRunner
from atelier.engines.engine import Runner
from atelier.engines.manifest import Backend, EngineManifest, Precision
from atelier.engines.parity import Inputs, Parity
from atelier.engines.profile import ShapeProfile
from atelier.engines.program import unet_program
from atelier.graphs.facts import Facts, read_facts
from atelier.graphs.graph import Graph, Role, read_graph
from atelier.graphs.model import load_unet
from atelier.graphs.random_model import TINY, write_random_model
from atelier.graphs.weights import graph_weights


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model: its weights as the file has them, and as eager PyTorch runs them."""

    folder: Path
    weights: dict[str, torch.Tensor]
    eager: EagerRunner

    @classmethod
    def read(cls, folder: Path) -> Variant:
        return cls(folder=folder, weights=graph_weights(folder, Role.UNET), eager=EagerRunner(load_unet(folder)))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Two variants, and the shapes of an engine for them."""

    a: Variant
    b: Variant
    graph: Graph
    facts: Facts
    profile: ShapeProfile
    inputs: Inputs

    def manifest(self, backend: Backend, precision: Precision = Precision.FP32) -> EngineManifest:
        fingerprint = detect("cpu").only(backend)
        return EngineManifest(graph=self.graph.digest, fingerprint=fingerprint, backend=backend, precision=precision, profile=self.profile)

    def build(self, backend: Any, folder: Path) -> None:
        place = folder / "unet"
        place.mkdir()
        program = unet_program(self.a.folder, self.graph, self.facts, profile=self.profile, precision=Precision.FP32)
        backend.build(program, place)

    def parity(self, runner: Runner, reference: Runner) -> Parity:
        return parity.compare(runner, reference, inputs=self.inputs, batch_sizes=self.profile.batch_sizes, precision=Precision.FP32)


def setting(root: Path, configs: Any) -> Setting:
    for seed, name in enumerate("ab"):
        write_random_model(root / name, configs=configs, seed=seed)
    facts = read_facts(root / "a")
    profile = ShapeProfile(width=64, height=64, batch_sizes=(2, 6))
    return Setting(
        a=Variant.read(root / "a"),
        b=Variant.read(root / "b"),
        graph=read_graph(root / "a", Role.UNET),
        facts=facts,
        profile=profile,
        inputs=Inputs.of_model(facts, profile),
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return setting(tmp_path_factory.mktemp("engines"), TINY)


@pytest.fixture(scope="session")
def openvino_folder(tiny: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openvino")
    tiny.build(openvino, folder)
    return folder


SMALLEST = {
    **TINY,
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": 1,
        "block_out_channels": [8],
        "cross_attention_dim": 32,
        "down_block_types": ["DownBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 8,
        "up_block_types": ["UpBlock2D"],
    },
}


@pytest.fixture(scope="session")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """For what takes long to build."""
    return setting(tmp_path_factory.mktemp("smallest"), SMALLEST)
