"""A model in diffusers layout <-> one file in the original SD naming, streamed.

Configs and tokenizer travel in the file's metadata; a file without them is one of SD 1.x, whose own are on board, or needs a model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from atelier.formats import texts
from atelier.formats.keys import TEXT, UNET, VAE, Names, dropped, text_missing, text_name, unet_names, vae_names
from atelier.formats.tensorfile import Output, Report, TensorFile, copied, write
from atelier.graphs.files import STEMS, todays_name, weight_files

_CLIP_WIDTH = 768
_SPEC = {
    "modelspec.sai_model_spec": "1.0.0",
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.implementation": "diffusers",
}


def from_diffusers(folder: Path, path: Path, *, dtype: str | None = None, report: Report | None = None) -> None:
    """Writes the model in `folder` as one file. `dtype`: F16, BF16 or F32, else as they are.

    ValueError names tensors that no rule maps, and those that the model should have and has not.
    """
    found = texts.of_folder(folder)
    translate = _to_original({part: texts.config(found, part) for part in ("unet", "vae")})
    outputs: list[Output] = []
    unknown: list[str] = []
    names: dict[str, set[str]] = {part: set() for part in STEMS}
    for part in STEMS:
        for source in (TensorFile(place) for place in weight_files(folder, part)):
            for name, entry in source.entries.items():
                if part == "text_encoder" and dropped(name):
                    continue
                new = translate[part](name)
                if new is None:
                    unknown.append(f"{part}/{name}")
                    continue
                names[part].add(_own_name(part, name))
                linear = part == "vae" and ".mid.attn_1." in new and name.endswith(".weight") and len(entry.shape) == 2
                outputs.append(copied(source, name, new, shape=(*entry.shape, 1, 1) if linear else None, dtype=dtype))
    _refuse(unknown)
    _require_whole(names, found)
    write(path, outputs, {**_SPEC, texts.CARRIED: texts.carried(found)}, report=report)


def to_diffusers(path: Path, folder: Path, *, config: Path | None = None, dtype: str | None = None, report: Report | None = None) -> None:
    """Writes the model in a single file as a folder.

    Configs come from `config` (a model's folder), from the file's metadata, or are SD 1.x's.
    Raises ValueError naming every tensor that no rule maps, or that is missing, or asking for `config` where the shapes are not SD 1.x's.
    """
    source = TensorFile(path)
    found = _texts(source, config)
    outputs: dict[str, list[Output]] = {part: [] for part in STEMS}
    unknown = []
    tables = {"unet": (UNET, unet_names(texts.config(found, "unet"))), "vae": (VAE, vae_names(texts.config(found, "vae")))}
    for name, entry in source.entries.items():
        if dropped(name):
            continue
        part, new = _from_original(name, tables)
        if new is None:
            unknown.append(name)
            continue
        flat = part == "vae" and ".attentions." in new and len(entry.shape) == 4
        outputs[part].append(copied(source, name, new, shape=entry.shape[:2] if flat else None, dtype=dtype))
    _refuse(unknown)
    empty = [part for part, own in outputs.items() if not own]
    if empty:
        raise ValueError(f"this is no whole Stable Diffusion model: it has no {', '.join(empty)}")
    _require_whole({part: {output.name for output in own} for part, own in outputs.items()}, found)
    for part, own in outputs.items():
        write(folder / part / f"{STEMS[part]}.safetensors", own, {}, report=report)
    texts.write(found, folder)


def original_name(part: str, name: str, configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The original name of a tensor of `unet`, `vae` or `text_encoder` in diffusers layout; None where no rule knows it."""
    return _to_original(configs)[part](name)


def original_names(source: TensorFile, modules: Iterable[str]) -> dict[str, str]:
    """Names in an opened single file of the weights of modules (`unet.down_blocks...`): those that it has, by name."""
    found = _texts(source, None)
    translate = _to_original({part: texts.config(found, part) for part in ("unet", "vae")})
    names = {}
    for module in modules:
        part, _, rest = module.partition(".")
        name = translate[part](f"{rest}.weight")
        # Files of 2022 come without `text_model.` too.
        for one in (name, name.replace(f"{TEXT}text_model.", TEXT) if name else None):
            if one in source.entries:
                names[str(one)] = module
    return names


def _to_original(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Callable[[str], str | None]]:
    unet, vae = unet_names(configs["unet"]), vae_names(configs["vae"])

    def put(prefix: str, name: str | None) -> str | None:
        return prefix + name if name is not None else None

    return {
        "unet": lambda name: put(UNET, unet.to_original(name)),
        "vae": lambda name: put(VAE, vae.to_original(todays_name("vae", name))),
        "text_encoder": lambda name: put(TEXT, text_name(name)),
    }


def _from_original(name: str, tables: Mapping[str, tuple[str, Names]]) -> tuple[str, str | None]:
    for part, (prefix, table) in tables.items():
        if name.startswith(prefix):
            return part, table.to_diffusers(name.removeprefix(prefix))
    return "text_encoder", text_name(name.removeprefix(TEXT)) if name.startswith(TEXT) else None


def _own_name(part: str, name: str) -> str:
    return str(text_name(name)) if part == "text_encoder" else todays_name(part, name)


def _texts(source: TensorFile, config: Path | None) -> dict[str, str]:
    if config is not None:
        return texts.alone(texts.of_folder(config))
    if texts.CARRIED in source.metadata:
        return texts.of_metadata(source.metadata[texts.CARRIED])
    embedding = next((e for n, e in source.entries.items() if n.startswith(TEXT) and n.endswith("token_embedding.weight")), None)
    conv = source.entries.get(f"{UNET}input_blocks.0.0.weight")
    if embedding is None or conv is None or embedding.shape[1:] != (_CLIP_WIDTH,) or conv.shape != (320, 4, 3, 3):
        raise ValueError(
            "the file is not of SD 1.x's shapes and carries no configs: convert it with the model that it was made from as `config`"
        )
    return texts.of_sd1()


def _refuse(unknown: list[str]) -> None:
    if unknown:
        raise ValueError(f"no rule maps these tensors: {_first(sorted(unknown))}")


def _require_whole(names: Mapping[str, set[str]], found: Mapping[str, str]) -> None:
    missing = {
        "unet": unet_names(texts.config(found, "unet")).missing(names["unet"]),
        "vae": vae_names(texts.config(found, "vae")).missing(names["vae"]),
        "text_encoder": text_missing(texts.config(found, "text_encoder"), names["text_encoder"]),
    }
    lacking = [f"{part}/{name}" for part, own in missing.items() for name in own]
    if lacking:
        raise ValueError(f"the model is not whole, these tensors are missing: {_first(lacking)}")


def _first(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
