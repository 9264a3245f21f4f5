"""safetensors files, mapped and streamed: a file of any size is rewritten in the memory of its largest tensor. Imports no torch."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from atelier.artifacts.safety import safetensors_header

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of an element, by safetensors' word for its type."""
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor of a file: its type, shape, and where its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Output:
    """A tensor to be written; `produce` gives its bytes when their turn comes."""

    name: str
    dtype: str
    shape: Sequence[int]
    produce: Callable[[], bytes | memoryview]


class TensorFile:
    """A safetensors file, mapped read-only. Raises ValueError for one that is damaged."""

    def __init__(self, path: Path) -> None:
        header = safetensors_header(path)
        self.metadata: Mapping[str, str] = header.pop("__metadata__", {})
        self._stream = path.open("rb")
        begin = 8 + struct.unpack("<Q", self._stream.read(8))[0]
        self.entries = {
            name: Entry(dtype=e["dtype"], shape=tuple(e["shape"]), begin=begin + e["data_offsets"][0], end=begin + e["data_offsets"][1])
            for name, e in header.items()
        }
        for name, entry in self.entries.items():
            if entry.dtype in BYTES and prod(entry.shape) * BYTES[entry.dtype] != entry.end - entry.begin:
                raise ValueError(f"damaged safetensors file: {name} does not have the bytes of its shape")
        self._map = mmap.mmap(self._stream.fileno(), 0, access=mmap.ACCESS_READ)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None) -> None:
        self._map.close()
        self._stream.close()

    def raw(self, name: str) -> bytes:
        """A tensor's bytes."""
        entry = self.entries[name]
        return self._map[entry.begin : entry.end]

    def array(self, name: str) -> NDArray[np.float32]:
        """A floating-point tensor as fp32."""
        entry = self.entries[name]
        return to_fp32(self.raw(name), entry.dtype).reshape(entry.shape)


def write(path: Path, outputs: Iterable[Output], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, one tensor after the other."""
    ordered = sorted(outputs, key=lambda output: output.name)
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for output in ordered:
        size = prod(output.shape) * BYTES[output.dtype]
        header[output.name] = {"dtype": output.dtype, "shape": list(output.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for output in ordered:
            stream.write(output.produce())
    if path.stat().st_size != 8 + len(text) + offset:
        path.unlink()
        raise ValueError(f"{path.name}: a tensor did not have the bytes of its shape")


def to_fp32(content: bytes, dtype: str) -> NDArray[np.float32]:
    """Bytes of a floating-point tensor as fp32, flat."""
    if dtype == "BF16":
        return (np.frombuffer(content, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
    if dtype not in kinds:
        raise ValueError(f"{dtype} tensors are not supported here")
    return np.frombuffer(content, dtype=kinds[dtype]).astype(np.float32)


def from_fp32(values: NDArray[np.float32], dtype: str) -> bytes:
    """fp32 values as bytes of another floating-point type, rounded to nearest even."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16)).astype("<u2").tobytes()
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values).astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def copied(source: TensorFile, name: str, new_name: str, *, shape: Sequence[int] | None = None, dtype: str | None = None) -> Output:
    """A tensor under a new name; in another shape of as many elements, or rounded to another type, if they are given."""
    entry = source.entries[name]
    wanted = dtype if dtype and entry.dtype in FLOATS else entry.dtype

    def produce() -> bytes:
        raw = source.raw(name)
        return raw if wanted == entry.dtype else from_fp32(to_fp32(raw, entry.dtype), wanted)

    return Output(name=new_name, dtype=wanted, shape=entry.shape if shape is None else shape, produce=produce)
