"""A model in diffusers layout <-> one file in the original SD naming, streamed.

Configs and tokenizer travel in the file's metadata where the model is not SD 1.x.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from atelier.formats.keys import TEXT, UNET, VAE, Names, dropped, unet_names, vae_names, vae_today
from atelier.formats.tensorfile import Output, Report, TensorFile, copied, write
from atelier.graphs.files import weight_files

TRAVELS = "atelier.files"
"""Key in the file's metadata under which configs and tokenizer travel, as JSON: path -> text."""
_TEXT_FILES = (".json", ".txt")
_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_CLIP_WIDTH = 768


def from_diffusers(folder: Path, path: Path, *, dtype: str | None = None, report: Report | None = None) -> None:
    """Writes the model in `folder` as one file. `dtype`: F16, BF16 or F32, else as they are. ValueError names tensors that no rule maps."""
    sources = {part: [TensorFile(p) for p in weight_files(folder, part)] for part in _WEIGHTS}
    outputs: list[Output] = []
    unknown: list[str] = []
    translate = _to_original({part: _config(folder, part) for part in ("unet", "vae")})
    for part, opened in sources.items():
        for source in opened:
            for name, entry in source.entries.items():
                if part == "text_encoder" and dropped(name):
                    continue
                new = translate[part](name)
                if new is None:
                    unknown.append(f"{part}/{name}")
                    continue
                linear = part == "vae" and ".mid.attn_1." in new and name.endswith(".weight") and len(entry.shape) == 2
                outputs.append(copied(source, name, new, shape=(*entry.shape, 1, 1) if linear else None, dtype=dtype))
    _refuse(unknown)
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "diffusers",
    }
    if not _is_sd1(folder):
        metadata[TRAVELS] = json.dumps(_travelling(folder))
    write(path, outputs, metadata, report=report)


def to_diffusers(path: Path, folder: Path, *, config: Path | None = None, dtype: str | None = None, report: Report | None = None) -> None:
    """Writes the model in a single file as a folder.

    Configs come from `config` (a model's folder), from the file's metadata, or are SD 1.x's.
    Raises ValueError naming every tensor that no rule maps, or asking for `config` where the shapes are not SD 1.x's.
    """
    source = TensorFile(path)
    texts = _texts(source, config)
    unet, vae = json.loads(texts["unet/config.json"]), json.loads(texts["vae/config.json"])
    outputs: dict[str, list[Output]] = {part: [] for part in _WEIGHTS}
    unknown = []
    names = {"unet": (UNET, unet_names(unet)), "vae": (VAE, vae_names(vae))}
    for name, entry in source.entries.items():
        if dropped(name):
            continue
        part, new = _from_original(name, names)
        if new is None:
            unknown.append(name)
            continue
        flat = part == "vae" and ".attentions." in new and len(entry.shape) == 4
        outputs[part].append(copied(source, name, new, shape=entry.shape[:2] if flat else None, dtype=dtype))
    _refuse(unknown)
    empty = [part for part, found in outputs.items() if not found]
    if empty:
        raise ValueError(f"this is no whole Stable Diffusion model: it has no {', '.join(empty)}")
    for part, found in outputs.items():
        write(folder / part / f"{_WEIGHTS[part]}.safetensors", found, {}, report=report)
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def original_name(part: str, name: str, configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The original name of a tensor of `unet`, `vae` or `text_encoder` in diffusers layout."""
    return _to_original(configs)[part](name)


def single_file_configs(source: TensorFile, config: Path | None = None) -> dict[str, dict[str, Any]]:
    """The configs of `unet` and `vae` that belong to an opened single file."""
    texts = _texts(source, config)
    return {part: json.loads(texts[f"{part}/config.json"]) for part in ("unet", "vae")}


def _to_original(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Callable[[str], str | None]]:
    unet, vae = unet_names(configs["unet"]), vae_names(configs["vae"])

    def put(prefix: str, name: str | None) -> str | None:
        return prefix + name if name is not None else None

    return {
        "unet": lambda name: put(UNET, unet.to_original(name)),
        "vae": lambda name: put(VAE, vae.to_original(vae_today(name))),
        "text_encoder": lambda name: f"{TEXT}text_model.{name.removeprefix('text_model.')}",
    }


def _from_original(name: str, names: Mapping[str, tuple[str, Names]]) -> tuple[str, str | None]:
    for part, (prefix, table) in names.items():
        if name.startswith(prefix):
            return part, table.to_diffusers(name.removeprefix(prefix))
    if name.startswith(TEXT):
        return "text_encoder", f"text_model.{name.removeprefix(TEXT).removeprefix('text_model.')}"
    return "", None


def _texts(source: TensorFile, config: Path | None) -> dict[str, str]:
    if config is not None:
        return _travelling(config)
    if TRAVELS in source.metadata:
        texts: dict[str, str] = json.loads(source.metadata[TRAVELS])
        return texts
    embedding = next((e for n, e in source.entries.items() if n.startswith(TEXT) and n.endswith("token_embedding.weight")), None)
    conv = source.entries.get(f"{UNET}input_blocks.0.0.weight")
    if embedding is None or conv is None or embedding.shape[1] != _CLIP_WIDTH or conv.shape != (320, 4, 3, 3):
        raise ValueError("the file is not of SD 1.x's shapes and carries no configs: name the model that it was made from as `config`")
    return _travelling(Path(str(files(__package__))) / "sd1")


def _travelling(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        wanted = name.name == "model_index.json" or (len(name.parts) > 1 and name.parts[0] in _PARTS)
        if path.is_file() and path.suffix in _TEXT_FILES and wanted and not name.name.endswith(".index.json"):
            found[name.as_posix()] = path.read_text(encoding="utf-8")
    return found


def _is_sd1(folder: Path) -> bool:
    ours = Path(str(files(__package__))) / "sd1"
    return all(_shape_facts(_config(folder, part)) == _shape_facts(_config(ours, part)) for part in ("unet", "vae", "text_encoder"))


def _shape_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    keys = (
        "block_out_channels", "layers_per_block", "cross_attention_dim", "attention_head_dim", "down_block_types", "up_block_types",
        "latent_channels", "hidden_size", "num_hidden_layers", "vocab_size", "scaling_factor",
    )  # fmt: skip
    return {key: config[key] for key in keys if key in config}


def _config(folder: Path, part: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / part / "config.json").read_text())
    return content


def _refuse(unknown: list[str]) -> None:
    if unknown:
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise ValueError(f"no rule maps these tensors: {', '.join(sorted(unknown)[:10])}{more}")
