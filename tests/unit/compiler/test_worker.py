from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier.artifacts.manifest import Kind
from atelier.compiler.worker import execute
from atelier.engines import engine as engines
from atelier.engines.detect import detect
from atelier.engines.manifest import EngineManifest, Precision
from atelier.engines.parity import relative_l2
from atelier.errors import AtelierError, Status, failed_precondition
from atelier.formats import single_file
from atelier.graphs.graph import Role, read_graph
from atelier.graphs.model import load_unet
from atelier.graphs.weights import graph_weights
from atelier.jobs.context import Cancelled, FolderContext, LocalArtifact
from atelier.v1 import compiler_pb2 as pb

HAS_BF16 = any(map(detect("cpu").has_flag, ("avx512_bf16", "amx_bf16")))
PLAIN_TORCH = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"atelier", "diffusers", "transformers", "accelerate", "peft", "openvino", "safetensors", "ray"}:
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Nothing())
import torch
module = torch.jit.load(sys.argv[1])
inputs = torch.load(sys.argv[2], weights_only=True)
torch.save([module(*rows) for rows in inputs], sys.argv[3])
"""


def compile_(context: FolderContext, model: Path, kind: Kind = Kind.MODEL, **fields: Any) -> str:
    digest = context.add(kind, model)
    execute(pb.CompileRequest(model=f"artifacts/{digest}", **fields), context)
    return digest


def bytes_of_tensors() -> int:
    plain = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    return sum(each.nbytes for each in plain if each.device.type == "cpu")


def error_of(call: Any) -> AtelierError:
    with pytest.raises(AtelierError) as caught:
        call()
    error: AtelierError = caught.value
    return error


def test_a_model_becomes_an_engine_once(tiny: Path, context: FolderContext) -> None:
    profile = pb.ShapeProfile(batch_sizes=[2])
    gc.disable()
    before = bytes_of_tensors()
    try:
        digest = compile_(context, tiny, precision=pb.ENGINE_PRECISION_FP32, profile=profile)
        left = bytes_of_tensors() - before
    finally:
        gc.enable()
    assert left < sum(tensor.nbytes for tensor in graph_weights(tiny, Role.UNET).values()), "torch.export's cycles hold what it exported"
    engine = context.artifact(context.outputs["engine"])
    described = EngineManifest.from_metadata(engine.manifest.metadata)
    assert engine.manifest.kind is Kind.ENGINE
    assert [(source.role, source.digest) for source in engine.manifest.sources] == [("model", digest)]
    assert described.graph == read_graph(tiny, Role.UNET).digest
    assert described.parity["relative_l2"]["2"] < described.parity["bound"] == 1e-4
    assert described.benchmark.keys() >= {"milliseconds", "eager_fp32_milliseconds", "speedup", "bound_milliseconds"}
    assert (described.profile.width, described.profile.height, described.profile.batch_sizes) == (64, 64, (2,))

    loaded = engines.load(engine.folder, manifest=described, fingerprint=detect("cpu"))
    rows = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 999.0]), torch.randn(2, 77, 32)
    with torch.no_grad():
        expected = load_unet(tiny)(*rows)[0]
    assert relative_l2(loaded.open(graph_weights(tiny, Role.UNET))(*rows), expected) < 1e-4

    first = context.outputs.pop("engine")
    context.events.clear()
    compile_(context, tiny, precision=pb.ENGINE_PRECISION_FP32, profile=profile)
    assert context.outputs["engine"] == first
    assert not any("phase" in event for event in context.events), "nothing was compiled"


def test_an_engine_that_was_signed_elsewhere_is_built_anew(tiny: Path, tmp_path: Path) -> None:
    class SignedElsewhere(FolderContext):
        def find(self, kind: Kind, key: str) -> LocalArtifact | None:
            raise failed_precondition("NOT_SIGNED_HERE", "artifacts/x was not built and signed by this installation: compile it here")

    context = SignedElsewhere(tmp_path / "job", cancel_at_step=0)
    context.progress("before", 0)
    with pytest.raises(Cancelled):  # as soon as it begins to build
        compile_(context, tiny, precision=pb.ENGINE_PRECISION_FP32, profile=pb.ShapeProfile(batch_sizes=[2]))
    assert any("not built and signed" in event.get("message", "") for event in context.events)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bf16")
def test_an_engine_that_fails_parity_is_not_published(tiny: Path, context: FolderContext) -> None:
    """The tiny model's random weights magnify OpenVINO's bf16 rounding beyond the bound."""
    asked = {"backend": pb.BACKEND_OPENVINO, "precision": pb.ENGINE_PRECISION_BF16, "profile": pb.ShapeProfile(batch_sizes=[2])}
    error = error_of(lambda: compile_(context, tiny, **asked))
    assert (error.status, error.reason) == (Status.FAILED_PRECONDITION, "PARITY_FAILED")
    assert float(error.metadata["batch_2"]) > float(error.metadata["bound"]) == 0.05
    assert not context.outputs
    assert len(list((context.root / "artifacts").iterdir())) == 1, "the model alone"


@pytest.mark.parametrize("output", [pb.COMPILE_OUTPUT_ENGINE, pb.COMPILE_OUTPUT_TORCHSCRIPT])
def test_what_does_not_agree_with_eager_pytorch_is_not_published(tiny: Path, context: FolderContext, tmp_path: Path, output: Any) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    path = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "conv_out.bias": torch.full_like(tensors["conv_out.bias"], torch.nan)}, path)
    asked = {"precision": pb.ENGINE_PRECISION_FP32, "profile": pb.ShapeProfile(batch_sizes=[2]), "output": output}
    error = error_of(lambda: compile_(context, tmp_path / "model", **asked))
    assert (error.status, error.reason) == (Status.FAILED_PRECONDITION, "PARITY_FAILED")
    assert "batch 2: nan" in error.message
    assert not context.outputs


def test_torchscript_runs_where_there_is_only_torch(tiny: Path, context: FolderContext, tmp_path: Path) -> None:
    compile_(context, tiny, output=pb.COMPILE_OUTPUT_TORCHSCRIPT)
    artifact = context.artifact(context.outputs["torchscript"])
    assert [file.path for file in artifact.manifest.files] == ["trace_module.pt"]
    metadata = artifact.manifest.metadata
    assert (artifact.manifest.kind, metadata["device"], metadata["dtype"]) == (Kind.TORCHSCRIPT, "cpu", "float32")
    assert metadata["shapes"] == {"sample": ["B", 4, 8, 8], "timesteps": ["B"], "encoder_hidden_states": ["B", 77, 32]}
    assert metadata["fingerprint"] == detect().to_json()

    inputs = [(torch.randn(n, 4, side, side), torch.linspace(1, 999, n), torch.randn(n, 77, 32)) for n, side in ((1, 8), (3, 16))]
    torch.save(inputs, tmp_path / "inputs.pt")
    script = tmp_path / "run.py"
    script.write_text(PLAIN_TORCH)
    paths = [artifact.folder / "trace_module.pt", tmp_path / "inputs.pt", tmp_path / "answers.pt"]
    subprocess.run([sys.executable, "-I", str(script), *map(str, paths)], check=True, capture_output=True)
    unet = load_unet(tiny)
    for rows, answer in zip(inputs, torch.load(tmp_path / "answers.pt"), strict=True):
        assert answer.shape == rows[0].shape
        with torch.no_grad():
            assert relative_l2(answer, unet(*rows)[0]) < 1e-5


def test_a_single_file_is_converted_first_and_stands_in_the_lineage(tiny: Path, context: FolderContext, tmp_path: Path) -> None:
    folder = tmp_path / "file"
    single_file.from_diffusers(tiny, folder / "model.safetensors")
    digest = compile_(context, folder, Kind.SINGLE_FILE, output=pb.COMPILE_OUTPUT_TORCHSCRIPT)
    assert list(context.outputs) == ["model", "torchscript"]
    model = context.artifact(context.outputs["model"])
    assert [(source.role, source.digest) for source in model.manifest.sources] == [("single_file", digest)]
    assert read_graph(model.folder, Role.UNET).digest == read_graph(tiny, Role.UNET).digest
    made = context.artifact(context.outputs["torchscript"]).manifest
    assert [(source.role, source.digest) for source in made.sources] == [("model", model.digest)]


def test_a_model_that_is_none_is_named(tiny: Path, context: FolderContext, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text("{}")
    error = error_of(lambda: compile_(context, folder))
    assert (error.status, error.reason) == (Status.INVALID_ARGUMENT, "BAD_MODEL")
    assert "the model has no unet/diffusion_pytorch_model.safetensors" in error.message


@pytest.mark.parametrize("output", [pb.COMPILE_OUTPUT_ENGINE, pb.COMPILE_OUTPUT_TORCHSCRIPT])
def test_a_tensor_that_is_missing_is_named(tiny: Path, context: FolderContext, tmp_path: Path, output: Any) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    path = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if name != "conv_in.bias"}, path)
    error = error_of(lambda: compile_(context, tmp_path / "model", output=output))
    assert (error.status, error.reason) == (Status.INVALID_ARGUMENT, "BAD_MODEL")
    assert "lack 'conv_in.bias'" in error.message
    assert not context.outputs


def test_tensorrt_on_a_processor_says_what_is_missing(tiny: Path, context: FolderContext) -> None:
    for output in (pb.COMPILE_OUTPUT_ENGINE, pb.COMPILE_OUTPUT_TORCHSCRIPT):
        error = error_of(lambda output=output: compile_(context, tiny, backend=pb.BACKEND_TENSORRT, output=output))
        assert (error.status, error.reason) == (Status.FAILED_PRECONDITION, "TENSORRT_NOT_INSTALLED")


def test_a_cancelled_compilation_stops_between_phases(tiny: Path, context: FolderContext) -> None:
    context.cancel_at_step = 0
    context.progress("before", 0)
    with pytest.raises(Cancelled):
        compile_(context, tiny, precision=pb.ENGINE_PRECISION_FP32, profile=pb.ShapeProfile(batch_sizes=[2]))
    assert not context.outputs


def test_precisions_are_named_as_in_the_request() -> None:
    names = {name.removeprefix("ENGINE_PRECISION_").lower() for name in dict(pb.EnginePrecision.items())} - {"unspecified"}
    assert names == {str(precision) for precision in Precision}
