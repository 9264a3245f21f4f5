"""A forward of the UNet: every backend beside eager PyTorch and beside OpenVINO as anybody would use it."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openvino as ov
import torch

from atelier import base_model
from atelier.engines import engine as engines
from atelier.engines.backends import inductor, openvino
from atelier.engines.detect import detect
from atelier.engines.eager import EagerRunner
from atelier.engines.manifest import Backend, EngineManifest, Precision
from atelier.engines.parity import Inputs
from atelier.engines.profile import ShapeProfile
from atelier.engines.program import unet_program
from atelier.graphs.facts import read_facts
from atelier.graphs.graph import Role, read_graph
from atelier.graphs.model import load_unet
from atelier.graphs.random_model import SD15, write_random_model
from bench.figures import Asked, Group, Row, interleaved

BATCH = 2
BUILDERS: dict[Backend, Any] = {Backend.OPENVINO: openvino, Backend.INDUCTOR: inductor}
LARGE_MEMORY_BYTES = 18e9


def groups(asked: Asked) -> Iterator[Group]:
    """The model on board, and where memory allows it one of Stable Diffusion 1.5's size."""
    backends = (Backend.OPENVINO,) if asked.quick else tuple(BUILDERS)
    yield _group("the model on board", base_model.folder(), rounds=3 if asked.quick else 30, backends=backends)
    if asked.quick:
        return
    available = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())["MemAvailable"]
    if int(available.split()[0]) * 1024 > LARGE_MEMORY_BYTES:
        with tempfile.TemporaryDirectory() as place:
            write_random_model(Path(place) / "sd15", configs=SD15)
            yield _group("Stable Diffusion 1.5's size, random weights", Path(place) / "sd15", rounds=2, backends=(Backend.OPENVINO,))


def _group(title: str, model: Path, *, rounds: int, backends: tuple[Backend, ...]) -> Group:
    facts = read_facts(model)
    profile = ShapeProfile(width=facts.width, height=facts.height, batch_sizes=(BATCH,))
    inputs = Inputs.of_model(facts, profile)
    rows = inputs.sample[:BATCH], inputs.timesteps[:BATCH], inputs.encoder_hidden_states[:BATCH]
    eager = _call(EagerRunner(load_unet(model)), rows)
    seconds, ratios = {"eager, fp32": 0.0}, {"eager, fp32": 1.0}
    for precision in (Precision.FP32, Precision.BF16):
        with tempfile.TemporaryDirectory() as place:
            for name, build in _builders(model, profile, precision, backends, Path(place), rows).items():
                # Each alone with eager: all together would not fit into memory at the large size.
                found = interleaved({"reference": eager, name: build()}, rounds=rounds)
                gc.collect()
                key = f"{name}, {precision}"
                seconds["eager, fp32"], seconds[key], ratios[key] = found["reference"], found[name], found["reference"] / found[name]
    words = f"{facts.width}x{facts.height} pixels, batch {BATCH} (one picture with guidance). The ratio is to eager PyTorch in fp32."
    lines = [Row(what=n, measured=f"{1000 * s:.1f} ms", ratio=f"{ratios[n]:.2f}x", goal=_goal(n, ratios)) for n, s in seconds.items()]
    return Group(title=f"UNet forward: {title}", words=words, rows=lines)


def _goal(name: str, ratios: dict[str, float]) -> str:
    kind, _, precision = name.partition(", ")
    if kind == "openvino bound":
        return f"within 5 % of bare OpenVINO: {100 * (ratios[f'bare OpenVINO, {precision}'] / ratios[name] - 1):+.0f} %"
    return ">= 1.6x" if name == "inductor, bf16" else ""


def _builders(
    model: Path, profile: ShapeProfile, precision: Precision, backends: tuple[Backend, ...], place: Path, rows: tuple[Any, ...]
) -> dict[str, Callable[[], Callable[[], object]]]:
    graph, fingerprint = read_graph(model, Role.UNET), detect("cpu")

    def engine(backend: Backend) -> Any:
        folder = place / backend
        manifest = EngineManifest(
            graph=graph.digest, fingerprint=fingerprint.only(backend), backend=backend, precision=precision, profile=profile
        )
        if not folder.exists():
            program = unet_program(model, graph, read_facts(model), profile=profile, precision=precision)
            (folder / "unet").mkdir(parents=True)
            BUILDERS[backend].build(program, folder / "unet")
        return engines.load(folder, manifest=manifest, fingerprint=fingerprint, num_threads=torch.get_num_threads())

    def weights() -> Any:
        return dict(load_unet(model).named_parameters())

    found: dict[str, Callable[[], Callable[[], object]]] = {}
    if precision is Precision.BF16:
        found["eager"] = lambda: _call(EagerRunner(load_unet(model, dtype=torch.bfloat16)), rows)
    found["bare OpenVINO"] = lambda: _bare(load_unet(model), precision, rows)
    if Backend.OPENVINO in backends:
        found["openvino open"] = lambda: _call(engine(Backend.OPENVINO).open(weights()), rows)
        found["openvino bound"] = lambda: _call(engine(Backend.OPENVINO).bind(weights()), rows)
    if Backend.INDUCTOR in backends:
        found["inductor"] = lambda: _call(engine(Backend.INDUCTOR).open(weights()), rows)
    return found


def _call(runner: Any, rows: tuple[Any, ...]) -> Callable[[], object]:
    return lambda: runner(*rows)


def _bare(unet: Any, precision: Precision, rows: tuple[Any, ...]) -> Callable[[], object]:
    """What anybody would write: export, convert, compile with static shapes, weights inside."""

    class Plain(torch.nn.Module):
        def forward(self, sample: Any, timesteps: Any, context: Any) -> Any:
            return unet(sample, timesteps, context, return_dict=False)[0]

    with torch.no_grad(), suppress(DeprecationWarning):
        exported = torch.export.export(Plain().eval(), rows, strict=False)
    hint = "f32" if precision is Precision.FP32 else "bf16"
    compiled = ov.Core().compile_model(
        ov.convert_model(exported),
        "CPU",
        {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()},
    )
    request = compiled.create_infer_request()
    arrays = [tensor.numpy() for tensor in rows]
    return lambda: request.infer(arrays)
