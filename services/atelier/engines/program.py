"""What a backend compiles: one graph of a model, with weights that are random and all distinct, so that none of the model's gets in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from atelier.engines.manifest import Precision
from atelier.engines.profile import MAX_BATCH_SIZE, ShapeProfile
from atelier.graphs.facts import Facts
from atelier.graphs.graph import Graph, Role
from atelier.graphs.model import empty_part, fill
from atelier.graphs.modules import MODULES, example_inputs
from atelier.graphs.weights import distinct_weights

DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


@dataclass(frozen=True, kw_only=True)
class Program:
    """A graph to compile for a device, in a precision, for the shapes of a profile."""

    model: Path
    """Folder of a model that has this graph; its configs are read, its tensors are not."""
    graph: Graph
    facts: Facts
    profile: ShapeProfile
    precision: Precision
    device: str = "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """torch's word for the precision."""
        return DTYPES[self.precision]

    @property
    def prefix(self) -> str:
        """What the module puts before a weight's name."""
        return MODULES[self.graph.role].PREFIX

    @property
    def input_names(self) -> tuple[str, ...]:
        """The graph's inputs, in order."""
        return MODULES[self.graph.role].INPUTS

    def module(self, dtype: torch.dtype, layout: torch.memory_format) -> nn.Module:
        """The graph as a module on the device, with distinct random weights in `dtype`; `layout` is that of 4-D weights."""
        module: nn.Module = MODULES[self.graph.role](empty_part(self.model, self.graph.role.part))
        weights = distinct_weights(self.graph, dtype=dtype)
        fill(module, {self.prefix + name: tensor for name, tensor in weights.items()}, part=self.graph.role.part)
        return module.to(self.device).to(memory_format=layout).eval()

    def inputs(self, batch: int, dtype: torch.dtype, layout: torch.memory_format) -> tuple[Tensor, ...]:
        """Example inputs, 4-D ones in `layout`."""
        tensors = example_inputs(
            self.graph.role,
            self.facts,
            batch=batch,
            width=self.profile.width,
            height=self.profile.height,
            dtype=dtype,
            device=self.device,
        )
        return tuple(t.to(memory_format=layout) if t.ndim == 4 else t for t in tensors)

    def export(self, dtype: torch.dtype, *, layout: torch.memory_format, batch: int | None = None) -> ExportedProgram:
        """The graph with its operations in `dtype`: for one batch, or with None for any up to the largest that there is."""
        # A sample batch of 1 would be taken for a constant.
        example = self.inputs(batch or 2, dtype, layout)
        dim = Dim("batch", min=1, max=MAX_BATCH_SIZE)
        shapes = None if batch else tuple({0: dim} for _ in example)
        with torch.no_grad():
            return torch.export.export(self.module(dtype, layout), example, dynamic_shapes=shapes, strict=False)


def unet_program(model: Path, graph: Graph, facts: Facts, *, profile: ShapeProfile, precision: Precision, device: str = "cpu") -> Program:
    """The program of a model's UNet. ValueError where the profile's pictures do not fit its blocks."""
    assert graph.role is Role.UNET, f"{graph.role} is no UNet"
    for side, pixels in (("width", profile.width), ("height", profile.height)):
        if pixels % facts.picture_multiple:
            raise ValueError(f"profile.{side} must be a multiple of {facts.picture_multiple} for this model, got {pixels}")
    return Program(model=model, graph=graph, facts=facts, profile=profile, precision=precision, device=device)
