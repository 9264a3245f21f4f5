"""A conversion or a merge: files in, files out, every tensor accounted for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from atelier.artifacts.manifest import Kind, Source
from atelier.converter import legacy
from atelier.errors import AtelierError, Status, invalid_field
from atelier.formats import folder as model_folder
from atelier.formats import lora, merging, single_file
from atelier.formats.keys import text_name
from atelier.formats.lora_names import Naming
from atelier.formats.lora_scale import CONFIG_FILE
from atelier.formats.tensorfile import Output, Report, TensorFile, write
from atelier.graphs.files import STEMS, weight_files
from atelier.jobs.context import JobContext, LocalArtifact
from atelier.v1 import converter_pb2

DTYPES = {
    converter_pb2.SAVE_PRECISION_UNSPECIFIED: None,
    converter_pb2.SAVE_PRECISION_FP16: "F16",
    converter_pb2.SAVE_PRECISION_BF16: "BF16",
    converter_pb2.SAVE_PRECISION_FP32: "F32",
}
NAMINGS = {
    converter_pb2.FORMAT_LORA_DIFFUSERS: Naming.DIFFUSERS,
    converter_pb2.FORMAT_LORA_WEBUI: Naming.WEBUI,
    converter_pb2.FORMAT_LORA_PEFT: Naming.PEFT,
}
LORA_FILES = {Naming.DIFFUSERS: "pytorch_lora_weights", Naming.PEFT: "adapter_model"}
"""The names under which diffusers and peft look for their files."""


def execute(request: converter_pb2.ConvertRequest | converter_pb2.MergeRequest, context: JobContext) -> None:
    """Runs the job. Raises INVALID_ARGUMENT naming the tensors that no rule maps."""
    try:
        if isinstance(request, converter_pb2.MergeRequest):
            _merge(request, context)
        else:
            _convert(request, context)
    except ValueError as error:
        raise AtelierError(Status.INVALID_ARGUMENT, "NOT_CONVERTIBLE", str(error)) from error


def _convert(request: converter_pb2.ConvertRequest, context: JobContext) -> None:
    source = context.artifact(request.source)
    folder = context.workdir / "out"
    folder.mkdir()
    dtype = DTYPES[request.precision]
    sources = [Source(role="source", digest=source.digest)]
    report = _reporter(context, "converting")
    if request.to == converter_pb2.FORMAT_SINGLE_FILE:
        single_file.from_diffusers(source.folder, folder / f"{request.file_name or 'model'}.safetensors", dtype=dtype, report=report)
        role, kind = "single_file", Kind.SINGLE_FILE
    elif request.to == converter_pb2.FORMAT_DIFFUSERS:
        config = context.artifact(request.config) if request.config else None
        single_file.to_diffusers(_tensors(source), folder, config=config.folder if config else None, dtype=dtype, report=report)
        sources += [Source(role="config", digest=config.digest)] if config else []
        role, kind = "model", Kind.MODEL
    else:
        naming = NAMINGS[request.to]
        name = LORA_FILES.get(naming, request.file_name or "lora")
        lora.save(_read_lora(source, context), folder / f"{name}.safetensors", naming)
        role, kind = "lora", Kind.LORA
    _carry_over(source, folder)
    context.publish(role, kind, folder, sources=sources)


def _merge(request: converter_pb2.MergeRequest, context: JobContext) -> None:
    base = context.artifact(request.base)
    artifacts = [context.artifact(item.lora) for item in request.loras]
    loras = [
        merging.Weighted(pairs=_read_lora(artifact, context), ratio=item.ratio)
        for artifact, item in zip(artifacts, request.loras, strict=True)
    ]
    folder = context.workdir / "out"
    dtype = DTYPES[request.precision]
    report = _reporter(context, "merging")
    if base.manifest.kind is Kind.SINGLE_FILE:
        source = _tensors(base)
        _merge_file(source, folder / f"{request.file_name or f'lora-{source.stem}'}.safetensors", loras, dtype=dtype, report=report)
        role, kind = "single_file", Kind.SINGLE_FILE
    else:
        _merge_folder(base.folder, folder, loras, dtype=dtype, report=report)
        role, kind = "model", Kind.MODEL
    _carry_over(artifacts[-1] if artifacts else base, folder)
    sources = [Source(role="base", digest=base.digest), *(Source(role="lora", digest=artifact.digest) for artifact in artifacts)]
    context.publish(role, kind, folder, sources=sources, metadata={"ratios": [item.ratio for item in request.loras]})


def _merge_file(source: Path, target: Path, loras: list[merging.Weighted], *, dtype: str | None, report: Report) -> None:
    opened = TensorFile(source)
    modules = single_file.original_names(opened, {module for weighted in loras for module in weighted.pairs})
    _check_fit({module: opened.entries[name].shape for name, module in modules.items()}, loras)
    metadata = {key: value for key, value in opened.metadata.items() if key != "format"}
    write(target, merging.merged(opened, loras, modules, dtype=dtype), metadata, report=report)


def _merge_folder(base: Path, folder: Path, loras: list[merging.Weighted], *, dtype: str | None, report: Report) -> None:
    files = [(part, TensorFile(path)) for part in STEMS for path in weight_files(base, part)]
    _check_fit({_module(part, name): entry.shape for part, file in files for name, entry in file.entries.items()}, loras)

    def tensors(part: str, file: TensorFile) -> list[Output]:
        return merging.merged(file, loras, {name: _module(part, name) for name in file.entries}, dtype=dtype)

    model_folder.rewrite(base, folder, tensors=tensors, report=report)


def _reporter(context: JobContext, phase: str) -> Report:
    """Says how many MiB of how many are written; a cancelled job stops between two pieces."""

    def report(done: int, total: int) -> None:
        context.check_cancelled()
        context.progress(f"{phase} (MiB)", -(-done >> 20), -(-total >> 20))

    return report


def _check_fit(shapes: Mapping[str, tuple[int, ...]], loras: list[merging.Weighted]) -> None:
    found = merging.misfits(loras, shapes)
    if found:
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        raise invalid_field("loras", f"a LoRA was trained on another architecture: {'; '.join(found[:10])}{more}", reason="LORA_MISFIT")


def _module(part: str, name: str) -> str:
    """The module whose weight a tensor is; for other tensors a name that no LoRA has."""
    return f"{part}.{(text_name(name) or name) if part == 'text_encoder' else name}".removesuffix(".weight")


def _read_lora(artifact: LocalArtifact, context: JobContext) -> dict[str, lora.Pair]:
    path = _tensors(artifact)
    if artifact.manifest.kind is Kind.LEGACY:
        target = context.workdir / f"{artifact.digest}.safetensors"
        context.log(f"{path.name} is a pickle: read in a process that cannot run its code")
        legacy.to_safetensors(path, target)
        path = target
    if lora.assumes_scale(path):
        context.log(f"{path.name} came without {CONFIG_FILE}: alpha is taken as the rank", level="warning")
    return lora.read(path)


def _tensors(artifact: LocalArtifact) -> Path:
    if artifact.manifest.kind is Kind.LEGACY:
        return artifact.folder / artifact.manifest.files[0].path
    return next(artifact.folder.rglob("*.safetensors"))


def _carry_over(source: LocalArtifact, folder: Path) -> None:
    """The preview picture goes along with what it shows."""
    preview = source.folder / "preview.png"
    if preview.exists():
        shutil.copyfile(preview, folder / "preview.png")
