"""Folders and files on disk as artifacts: which kind they are, told by their content, and which of their files belong."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from atelier.artifacts.manifest import Kind
from atelier.artifacts.safety import CODE, Format, safetensors_header, sniff
from atelier.errors import failed_precondition, invalid_field

_LORA_ENDINGS = (".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".lora.down.weight", ".lora.up.weight")
_MODEL_ENDINGS = (".json", ".txt", ".safetensors", ".model")
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")
"""What a repository of the Hugging Face Hub is called."""
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/-]*")
_PEFT = "base_model.model."
_BESIDE = "adapter_config.json"
"""Where peft says alpha, without which its matrices have no scale."""


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


def cached_repository(hub: Path, repository: str, revision: str) -> Path | None:
    """The folder of a repository in a Hugging Face cache, or None; `revision` is a branch, tag or commit, empty for `main`."""
    root = hub / f"models--{repository.replace('/', '--')}"
    reference = root / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = root / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def hub_facts(repository: str, folder: Path) -> dict[str, str]:
    """What is recorded of a repository in a Hugging Face cache: its name, and the commit, which its folder is named after."""
    return {"repository": repository, "revision": folder.name}


def hub_folder(repository: str, revision: str, *, allow_download: bool, downloads: bool) -> Found:
    """A repository from this machine's Hugging Face cache; downloaded where the request (`allow_download`) and the operator allow it.

    Raises FAILED_PRECONDITION when it is not there, INVALID_ARGUMENT when it can be the name of none.
    """
    if not REPOSITORY.fullmatch(repository):
        raise invalid_field("source", f"{repository!r} is neither an absolute path nor a Hugging Face repository, owner/name")
    if revision and not _REVISION.fullmatch(revision):
        raise invalid_field("revision", f"{revision!r} is no branch, tag or commit")
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise failed_precondition("NO_HUB", "huggingface_hub is not installed on the server: upload the model's folder") from error
    folder = cached_repository(Path(constants.HF_HUB_CACHE), repository, revision)
    # Other programs leave snapshots of configs alone.
    if allow_download and downloads and not (folder and any(folder.rglob("*.safetensors"))):
        folder = _downloaded(repository, revision)
    if folder is None:
        hint = "--allow-download fetches it"
        if allow_download:
            hint = "it could not be downloaded" if downloads else "this server does not download: ATELIER_ALLOW_DOWNLOAD=true lets it"
        sentence = f"{repository} is not in the Hugging Face cache of the server; {hint}"
        raise failed_precondition("NOT_IN_HUB_CACHE", sentence, repository=repository)
    return replace(examine(folder), metadata=hub_facts(repository, folder))


def _downloaded(repository: str, revision: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    fetch = partial(snapshot_download, repository, revision=revision or None)
    try:
        folder = Path(fetch(allow_patterns=["*.json", "*.txt"]))
        # Beside a model's folders there often lie checkpoints of many gigabytes, which nobody asked for.
        whole = (folder / "model_index.json").exists()
        patterns = ["*/*.safetensors"] if whole else ["*.safetensors"]
        return Path(fetch(allow_patterns=patterns, ignore_patterns=["*.non_ema.safetensors"]))
    except (LocalEntryNotFoundError, OSError):
        return None


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
    files = {path.name: path}
    beside = path.with_name(_BESIDE)
    if any(name.startswith(_PEFT) for name in names) and beside.is_file():
        files[beside.name] = beside
    return Found(kind=kind or (Kind.LORA if lora else Kind.SINGLE_FILE), files=files)


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
