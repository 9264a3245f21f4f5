"""Configs and tokenizer of a model as texts by path, from a folder or a single file's metadata, made such that the field reads them.

transformers 4 needs `vocab.json` and `merges.txt`, where transformers 5 writes `tokenizer.json` alone; `_name_or_path` shows a path of the
writer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

CARRIED = "atelier.files"
"""Key in a single file's metadata under which configs and tokenizer travel, as JSON: path -> text."""
_PATH = re.compile(r"model_index\.json|(unet|vae|text_encoder|tokenizer|scheduler)/[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*\.(json|txt)")
_NEEDED = ("model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
_VOCABULARY = ("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer.json")
_INDEX = "model_index.json"


def of_folder(folder: Path) -> dict[str, str]:
    """The texts of a model in diffusers layout. ValueError where one is no text, or one that is needed is not there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and _PATH.fullmatch(name) and not _describes_shards(name):
            found[name] = path.read_text(encoding="utf-8")
    return _checked(found)


def of_sd1() -> dict[str, str]:
    """Those of Stable Diffusion 1.x, which are on board."""
    return of_folder(Path(str(files(__package__))) / "sd1")


def carried(texts: Mapping[str, str]) -> str:
    """What travels in a file's metadata; CLIP's own vocabulary, 1.4 MB, stays at home."""
    own = {name: text for name, text in texts.items() if name not in _VOCABULARY} if _is_clips(texts) else texts
    return json.dumps(alone(own))


def of_metadata(text: str) -> dict[str, str]:
    """What a file's metadata carries. ValueError for anything but texts of a model under their own paths: the file may be a stranger's."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"the file's metadata under {CARRIED} is not JSON") from None
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise ValueError(f"the file's metadata under {CARRIED} is not a map from paths to texts")
    wrong = [name for name in found if not _PATH.fullmatch(name)]
    if wrong:
        raise ValueError(f"the file's metadata under {CARRIED} holds {wrong[0]!r}, which is no path of a model's config or tokenizer")
    if not any(name in found for name in _VOCABULARY):
        home = of_sd1()
        found |= {name: home[name] for name in _VOCABULARY if name in home}
    return _checked(found)


def alone(texts: Mapping[str, str]) -> dict[str, str]:
    """The same with an index that names nothing else, as a safety checker: readers would look for it."""
    content = _object(texts, _INDEX)
    parts = {name.partition("/")[0] for name in texts}
    gone = [key for key, value in content.items() if isinstance(value, list) and value != [None, None] and key not in parts]
    return {**texts, _INDEX: _as_text({**content, **{key: [None, None] for key in gone}})} if gone else dict(texts)


def write(texts: Mapping[str, str], folder: Path) -> None:
    """Writes texts below a folder, each under its path."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def config(texts: Mapping[str, str], part: str) -> dict[str, Any]:
    """The config of a part."""
    return _object(texts, f"{part}/config.json")


def _checked(texts: Mapping[str, str]) -> dict[str, str]:
    missing = [name for name in _NEEDED if name not in texts]
    if missing:
        raise ValueError(f"the model has no {', '.join(missing)}")
    found = _with_vocabulary({name: _without_path(texts, name) for name in texts})
    if not {"tokenizer/vocab.json", "tokenizer/merges.txt"} <= found.keys():
        raise ValueError("the model has neither tokenizer/vocab.json with merges.txt nor tokenizer/tokenizer.json")
    return found


def _without_path(texts: Mapping[str, str], name: str) -> str:
    if not name.endswith(".json") or "name_or_path" not in texts[name]:
        return texts[name]
    content = _object(texts, name)
    return _as_text({key: value for key, value in content.items() if key not in ("_name_or_path", "name_or_path")})


def _with_vocabulary(texts: dict[str, str]) -> dict[str, str]:
    vocab, merges, whole = _VOCABULARY
    if whole not in texts or (vocab in texts and merges in texts):
        return texts
    content = _object(texts, whole)
    model = content.get("model", {})
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise ValueError(f"{whole} holds no byte pair encoding")
    special = {token["content"]: token["id"] for token in content.get("added_tokens", []) if token.get("special")}
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {**texts, vocab: json.dumps({**model["vocab"], **special}, ensure_ascii=False), merges: "\n".join(["#version: 0.2", *lines, ""])}


def _is_clips(texts: Mapping[str, str]) -> bool:
    home = of_sd1()
    vocab, merges, whole = _VOCABULARY
    if "tokenizer/added_tokens.json" in texts or merges not in texts or texts[merges].split() != home[merges].split():
        return False
    clips = _object(home, vocab)
    added = _object(texts, whole).get("added_tokens", []) if whole in texts else []
    return _object(texts, vocab) == clips and all(clips.get(token["content"]) == token["id"] for token in added)


def _object(texts: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        content = json.loads(texts[name])
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is not JSON") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name} is not a JSON object")
    return content


def _as_text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _describes_shards(name: str) -> bool:
    return name.endswith((".index.json", ".index.fp16.json"))
