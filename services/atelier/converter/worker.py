"""A conversion or a merge: files in, files out, every tensor accounted for."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from atelier.artifacts.manifest import Kind, Source
from atelier.converter import legacy
from atelier.errors import AtelierError, Status, invalid_field
from atelier.formats import lora, merging, single_file
from atelier.formats.lora import Naming
from atelier.formats.tensorfile import Report, TensorFile, write
from atelier.graphs.files import weight_files
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
    if base.manifest.kind is Kind.SINGLE_FILE:
        source = _tensors(base)
        target = folder / f"{request.file_name or f'lora-{source.stem}'}.safetensors"
        opened = TensorFile(source)
        modules = _original_modules(opened, loras)
        _check_fit([opened], [modules], loras)
        metadata = {k: v for k, v in opened.metadata.items() if k != "format"}
        write(target, merging.merged(opened, loras, modules, dtype=dtype), metadata, report=_reporter(context, "merging"))
        role, kind = "single_file", Kind.SINGLE_FILE
    else:
        _merge_folder(base.folder, folder, loras, dtype=dtype, context=context)
        role, kind = "model", Kind.MODEL
    _carry_over(artifacts[-1] if artifacts else base, folder)
    sources = [Source(role="base", digest=base.digest), *(Source(role="lora", digest=artifact.digest) for artifact in artifacts)]
    context.publish(role, kind, folder, sources=sources, metadata={"ratios": [item.ratio for item in request.loras]})


def _merge_folder(base: Path, folder: Path, loras: list[merging.Weighted], *, dtype: str | None, context: JobContext) -> None:
    opened = {path: (TensorFile(path), part) for part in ("unet", "text_encoder") for path in weight_files(base, part)}
    modules = {path: {name: _module(part, name) for name in file.entries} for path, (file, part) in opened.items()}
    _check_fit([file for file, _ in opened.values()], list(modules.values()), loras)
    shutil.copytree(base, folder, ignore=lambda at, names: [n for n in names if Path(at, n) in opened])
    for path, (file, part) in opened.items():
        outputs = merging.merged(file, loras, modules[path], dtype=dtype)
        write(folder / path.relative_to(base), outputs, {}, report=_reporter(context, f"merging {part}"))


def _reporter(context: JobContext, phase: str) -> Report:
    """Says how many MiB of how many are written; a cancelled job stops between two pieces."""

    def report(done: int, total: int) -> None:
        context.check_cancelled()
        context.progress(f"{phase} (MiB)", -(-done >> 20), -(-total >> 20))

    return report


def _check_fit(files: list[TensorFile], modules: list[dict[str, str]], loras: list[merging.Weighted]) -> None:
    shapes = {
        names[name]: file.entries[name].shape
        for file, names in zip(files, modules, strict=True)
        for name in names
        if name.endswith(".weight")
    }
    found = merging.misfits(loras, shapes)
    if found:
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        raise invalid_field("loras", f"a LoRA was trained on another architecture: {'; '.join(found[:10])}{more}", reason="LORA_MISFIT")


def _original_modules(source: TensorFile, loras: list[merging.Weighted]) -> dict[str, str]:
    configs = single_file.single_file_configs(source)
    found = {}
    for module in sorted({module for weighted in loras for module in weighted.pairs}):
        part, _, rest = module.partition(".")
        name = single_file.original_name(part, f"{rest}.weight", configs)
        if name in source.entries:
            found[str(name)] = module
    return found


def _module(part: str, name: str) -> str:
    name = name.removesuffix(".weight")
    return f"text_encoder.text_model.{name.removeprefix('text_model.')}" if part == "text_encoder" else f"{part}.{name}"


def _read_lora(artifact: LocalArtifact, context: JobContext) -> dict[str, lora.Pair]:
    path = _tensors(artifact)
    if artifact.manifest.kind is Kind.LEGACY:
        target = context.workdir / f"{artifact.digest}.safetensors"
        context.log(f"{path.name} is a pickle: read in a process that cannot run its code")
        legacy.to_safetensors(path, target)
        path = target
    pairs = lora.read(path)
    if any(not math.isfinite(pair.scale) for pair in pairs.values()):
        raise ValueError("its alpha is not finite")
    return pairs


def _tensors(artifact: LocalArtifact) -> Path:
    if artifact.manifest.kind is Kind.LEGACY:
        return artifact.folder / artifact.manifest.files[0].path
    return next(artifact.folder.glob("*.safetensors"))


def _carry_over(source: LocalArtifact, folder: Path) -> None:
    """The preview picture goes along with what it shows."""
    preview = source.folder / "preview.png"
    if preview.exists() and not (folder / "preview.png").exists():
        shutil.copyfile(preview, folder / "preview.png")
