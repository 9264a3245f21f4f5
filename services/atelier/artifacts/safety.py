"""What a file is, told by its content and never by its name; and which files may enter as which kind.

Pickles, TorchScript and .pt2 archives run code when they are loaded: from a client they come in as `LEGACY` only.
"""

from __future__ import annotations

import codecs
import json
import struct
import zipfile
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from atelier.artifacts.manifest import Kind
from atelier.errors import Violation, invalid

MAX_HEADER_BYTES = 100 << 20
"""safetensors' own bound on its header."""


class Format(StrEnum):
    """What a file can be."""

    SAFETENSORS = "safetensors"
    PICKLE = "pickle"
    TORCHSCRIPT = "TorchScript"
    PT2 = "exported program (.pt2)"
    ARCHIVE = "archive"
    PICTURE = "picture"
    JSON = "JSON"
    TEXT = "text"
    NATIVE_CODE = "native code"
    BINARY = "unknown binary"


CODE = frozenset({Format.PICKLE, Format.TORCHSCRIPT, Format.PT2, Format.NATIVE_CODE})
"""What runs code when it is loaded."""

_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF8", b"II*\x00", b"MM\x00*")
_NATIVE = (b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
_ALLOWED: Mapping[Kind, frozenset[Format]] = {
    Kind.DATASET: frozenset({Format.PICTURE, Format.TEXT, Format.JSON}),
    Kind.MODEL: frozenset({Format.SAFETENSORS, Format.JSON, Format.TEXT, Format.PICTURE}),
    Kind.LORA: frozenset({Format.SAFETENSORS, Format.JSON, Format.TEXT, Format.PICTURE}),
    Kind.SINGLE_FILE: frozenset({Format.SAFETENSORS, Format.TEXT, Format.PICTURE}),
    Kind.LEGACY: frozenset(Format),
}
"""What a client may bring in; kinds that are not here are made by jobs only."""


def sniff(path: Path) -> Format:
    """What the file is."""
    with path.open("rb") as stream:
        head = stream.read(4096)
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(path)
    if head.startswith(_PICTURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return Format.PICTURE
    if head.startswith(_NATIVE):
        return Format.NATIVE_CODE
    if _is_safetensors(path, head):
        return Format.SAFETENSORS
    if _is_pickle(head):
        return Format.PICKLE
    if head.startswith((b"\x1f\x8b", b"BZh", b"7z\xbc\xaf", b"\xfd7zXZ")) or head[257:262] == b"ustar":
        return Format.PICKLE if b"pickle" in head or b"storages" in head[:512] else Format.ARCHIVE
    return _sniff_text(path, head)


def safetensors_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: name -> `{dtype, shape, data_offsets}`, and `__metadata__`. Raises ValueError when it is none.

    Types are checked, and the offsets: in order, without gaps or overlaps, and to the file's end.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ValueError("not a safetensors file: its header length is impossible")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            spans = sorted(_span(entry) for name, entry in header.items() if name != "__metadata__")
            _check_strings(header.get("__metadata__", {}))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("not a safetensors file: its header cannot be read") from error
    end = 0
    for begin, stop in spans:
        if begin != end or stop < begin:
            raise ValueError("damaged safetensors file: its tensors overlap or leave gaps")
        end = stop
    if 8 + length + end != size:
        raise ValueError(f"damaged safetensors file: {size} bytes, its header says {8 + length + end}")
    return header


def _span(entry: Mapping[str, Any]) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    # `type`, since True is an int too.
    if not isinstance(entry["dtype"], str) or not all(type(n) is int and n >= 0 for n in (begin, end, *entry["shape"])):
        raise ValueError("a tensor without a type, shape and place")
    return begin, end


def _check_strings(metadata: Mapping[str, Any]) -> None:
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata that are no strings")


def check_kind(kind: Kind) -> None:
    """Raises INVALID_ARGUMENT for the kinds that only jobs make."""
    if kind not in _ALLOWED:
        sentence = f"{kind} artifacts are made by jobs only; bring a pickle or compiled file in as LEGACY"
        raise invalid([Violation("kind", sentence)], reason="KIND_NOT_UPLOADABLE")


_PICTURE_NAMES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def check_files(kind: Kind, files: Mapping[str, Path]) -> None:
    """Raises INVALID_ARGUMENT, naming every bad file, unless a client may bring these files in as this kind."""
    check_kind(kind)
    violations, unsafe = [], False
    for name, path in sorted(files.items()):
        form = sniff(path)
        if form not in _ALLOWED[kind]:
            unsafe = unsafe or form in CODE
            violations.append(Violation(f"files[{name}]", _sentence(kind, name, form)))
        elif name.endswith(".safetensors") and form is not Format.SAFETENSORS and kind is not Kind.LEGACY:
            violations.append(Violation(f"files[{name}]", f"{name} is {form} in spite of its name"))
        elif kind is Kind.DATASET and name.lower().endswith(_PICTURE_NAMES) and form is not Format.PICTURE:
            violations.append(Violation(f"files[{name}]", f"{name} is {form} in spite of its name, no picture"))
    violations += _layout(kind, files)
    if violations:
        raise invalid(violations, reason="UNSAFE_FORMAT" if unsafe else "WRONG_CONTENT")


def _sentence(kind: Kind, name: str, form: Format) -> str:
    if form in CODE:
        return f"{name} is a {form} and would run code when loaded: bring it in as LEGACY and convert it"
    return f"{name} is {form}, which a {kind} does not hold"


def _layout(kind: Kind, files: Mapping[str, Path]) -> list[Violation]:
    tensors = [name for name in files if name.endswith(".safetensors")]
    if kind in (Kind.LORA, Kind.SINGLE_FILE) and len(tensors) != 1:
        return [Violation("files", f"a {kind} holds exactly one .safetensors file, got {len(tensors)}")]
    if kind is Kind.LEGACY and len(files) != 1:
        return [Violation("files", f"a LEGACY holds exactly one file, got {len(files)}")]
    if kind is Kind.DATASET and all(sniff(path) is not Format.PICTURE for path in files.values()):
        return [Violation("files", "there is no picture among them (PNG, JPEG, WebP, BMP)")]
    if kind is not Kind.MODEL:
        return []
    missing = [] if "model_index.json" in files else ["model_index.json"]
    for component in ("unet", "vae", "text_encoder"):
        if f"{component}/config.json" not in files:
            missing.append(f"{component}/config.json")
        if not any(name.startswith(f"{component}/") for name in tensors):
            missing.append(f"{component}/*.safetensors")
    if not any(name.startswith("tokenizer/") for name in files):
        missing.append("tokenizer/")
    return [Violation("files", f"not a Stable Diffusion model in diffusers layout, it lacks {', '.join(missing)}")] if missing else []


def _is_safetensors(path: Path, head: bytes) -> bool:
    if len(head) < 10 or head[8:9] != b"{":
        return False
    try:
        safetensors_header(path)
    except ValueError:
        return False
    return True


def _is_pickle(head: bytes) -> bool:
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return True
    # Protocols 0 and 1 have no magic: they begin with a MARK, a GLOBAL (`cmodule\nname\n`) or a container opcode, and end with `.`.
    if head[:1] == b"c" and head.count(b"\n", 0, 200) >= 2:
        return b" " not in head[: head.index(b"\n")]
    return head[:2] in (b"(d", b"(l", b"(c", b"(i", b"(t", b"}q", b"]q", b"(S", b"(V", b"(I", b"(F") or head[:3] == b"(dp"


def _sniff_zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            if "constants.pkl" in names:
                return Format.TORCHSCRIPT
            if "archive_format" in names and archive.read(names["archive_format"]).strip() == b"pt2":
                return Format.PT2
    except (zipfile.BadZipFile, RuntimeError, EOFError):
        return Format.PICKLE  # torch reads zips that Python does not: take no chance
    if any(name.endswith(".pkl") for name in (*names, *names.values())):
        return Format.PICKLE
    return Format.ARCHIVE


def _sniff_text(path: Path, head: bytes) -> Format:
    if b"\x00" in head:
        return Format.BINARY
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # a character may be cut at the end of the head
    except UnicodeDecodeError:
        return Format.BINARY
    if head.lstrip()[:1] in (b"{", b"[") and path.stat().st_size < MAX_HEADER_BYTES:
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return Format.TEXT
        return Format.JSON
    return Format.TEXT
