"""Folders and files on disk as artifacts: which kind they are, told by their content, and which of their files belong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from atelier.artifacts.manifest import Kind
from atelier.artifacts.safety import CODE, Format, safetensors_header, sniff
from atelier.errors import failed_precondition, invalid_field

_LORA_ENDINGS = (".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".lora.down.weight", ".lora.up.weight")
_MODEL_ENDINGS = (".json", ".txt", ".safetensors", ".model")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lies somewhere: its kind, its files by path in the artifact, and facts about it."""

    kind: Kind
    files: Mapping[str, Path]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def examine(path: Path, kind: Kind | None = None) -> Found:
    """Tells what a folder or file is. Raises INVALID_ARGUMENT when it is nothing that Atelier knows."""
    if path.is_file():
        return _examine_file(path, kind)
    if not path.is_dir():
        raise invalid_field("source", f"there is no file or folder {str(path)!r}")
    if (path / "model_index.json").exists():
        return Found(kind=kind or Kind.MODEL, files=_model_files(path))
    tensors = [p for p in sorted(path.rglob("*.safetensors")) if p.is_file()]
    if len(tensors) == 1:
        found, preview = _examine_file(tensors[0], kind), tensors[0].with_name("preview.png")
        return replace(found, files={**found.files, preview.name: preview}) if preview.is_file() else found
    files = {p.relative_to(path).as_posix(): p for p in sorted(path.rglob("*")) if p.is_file() and not _hidden(p.relative_to(path))}
    pictures = {name: p for name, p in files.items() if sniff(p) is not Format.JSON}
    if not files:
        raise invalid_field("source", f"{str(path)!r} is empty")
    return Found(kind=kind or Kind.DATASET, files=pictures or files)


def hub_folder(repository: str, revision: str, *, allow_download: bool) -> Found:
    """A repository of the Hugging Face Hub from the local cache; downloaded (safetensors, JSON and text only) where that is allowed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.txt"]
    try:
        folder = Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=patterns, local_files_only=not allow_download)
        )
    except (LocalEntryNotFoundError, OSError) as error:
        hint = "" if allow_download else "; --allow-download fetches it"
        sentence = f"{repository} is not in the local Hugging Face cache{hint}"
        raise failed_precondition("NOT_IN_HUB_CACHE", sentence, repository=repository) from error
    found = examine(folder)
    return Found(kind=found.kind, files=found.files, metadata={"repository": repository, "revision": folder.name})


def _examine_file(path: Path, kind: Kind | None) -> Found:
    form = sniff(path)
    if form in CODE:
        return Found(kind=kind or Kind.LEGACY, files={path.name: path})
    if form is Format.PICTURE:
        return Found(kind=kind or Kind.DATASET, files={path.name: path})
    if form is not Format.SAFETENSORS:
        raise invalid_field("source", f"{path.name} is {form}: expected a model, a LoRA, pictures, or a folder of them")
    names = [name for name in safetensors_header(path) if name != "__metadata__"]
    lora = any(name.endswith(_LORA_ENDINGS) for name in names)
    return Found(kind=kind or (Kind.LORA if lora else Kind.SINGLE_FILE), files={path.name: path})


def _model_files(folder: Path) -> dict[str, Path]:
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        # At the top level only the index: single-file checkpoints often lie beside it.
        if (
            path.is_file()
            and not _hidden(name)
            and name.name.endswith(_MODEL_ENDINGS)
            and (len(name.parts) > 1 or name.name == "model_index.json")
        ):
            files[name.as_posix()] = path
    return {name: path for name, path in files.items() if _without_variant(name) not in files.keys() - {name}}


def _without_variant(name: str) -> str:
    # `unet/diffusion_pytorch_model.fp16.safetensors` is left out where `unet/diffusion_pytorch_model.safetensors` is there too.
    folder, _, file = name.rpartition("/")
    parts = file.split(".")
    return f"{folder}/{parts[0]}.safetensors" if len(parts) == 3 and parts[2] == "safetensors" else name


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def below(path: Path, roots: list[Path]) -> bool:
    """Whether a path lies below one of the roots, links followed."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(root)) for root in roots)
