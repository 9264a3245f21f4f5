"""safetensors files, mapped and streamed: a file of any size is rewritten in the memory of a few of its tensors at most. No torch."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atelier.artifacts.safety import safetensors_header
from atelier.formats.floats import FLOATS, Buffer, cast, to_fp32

BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4,
    "C64": 8, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
"""Bytes of an element by safetensors' word for its type. Tensors are written with the last type first, as the reference library does,
so that each is aligned to its elements."""
PIECE_BYTES = 8 << 20

Report = Callable[[int, int], None]
"""Told after every piece how many bytes of how many have been written; may raise to stop."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor of a file: its type, shape, and where its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Output:
    """A tensor to be written; `pieces` gives its bytes, a piece at a time, when its turn comes."""

    name: str
    dtype: str
    shape: Sequence[int]
    pieces: Callable[[], Iterable[Buffer]]


class TensorFile:
    """A safetensors file, mapped read-only for as long as it, or a view of its bytes, is in use. ValueError for a damaged one."""

    def __init__(self, path: Path) -> None:
        header = safetensors_header(path)
        self.metadata: Mapping[str, str] = header.pop("__metadata__", {})
        with path.open("rb") as stream:
            begin = 8 + struct.unpack("<Q", stream.read(8))[0]
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = memoryview(self._map)
        self.entries = {name: _entry(name, content, begin) for name, content in header.items()}

    def raw(self, name: str) -> memoryview:
        """A tensor's bytes, where they lie in the file."""
        entry = self.entries[name]
        return self._bytes[entry.begin : entry.end]

    def array(self, name: str) -> NDArray[np.float32]:
        """A floating-point tensor as fp32, a copy; its bytes leave this process's memory again. ValueError, naming it, where it is none."""
        entry = self.entries[name]
        try:
            found = to_fp32(self.raw(name), entry.dtype).reshape(entry.shape)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        self._release(entry.begin, entry.end)
        return found

    def pieces(self, name: str) -> Iterator[memoryview]:
        """A tensor's bytes, at most 8 MiB at a time; what was taken leaves this process's memory again."""
        entry = self.entries[name]
        for begin in range(entry.begin, entry.end, PIECE_BYTES):
            end = min(begin + PIECE_BYTES, entry.end)
            yield self._bytes[begin:end]
            self._release(begin, end)

    def _release(self, begin: int, end: int) -> None:
        page = mmap.PAGESIZE
        first, last = -(-begin // page) * page, end // page * page
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


def write(path: Path, outputs: Iterable[Output], metadata: Mapping[str, str], *, report: Report | None = None) -> None:
    """Writes a safetensors file, one tensor after the other; leaves nothing behind where that fails.

    Raises ValueError where two tensors have one name, or one has not the bytes of its shape.
    """
    order = list(BYTES)
    ordered = sorted(outputs, key=lambda output: (-order.index(output.dtype), output.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    total = 0
    for output in ordered:
        if output.name in header:
            raise ValueError(f"two tensors would be written as {output.name}")
        size = prod(output.shape) * BYTES[output.dtype]
        header[output.name] = {"dtype": output.dtype, "shape": list(output.shape), "data_offsets": [total, total + size]}
        total += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            _write_tensors(stream.write, ordered, total=total, report=report)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def copied(source: TensorFile, name: str, new_name: str, *, shape: Sequence[int] | None = None, dtype: str | None = None) -> Output:
    """A tensor under a new name; in another shape of as many elements, or rounded to another type, if they are given."""
    entry = source.entries[name]
    wanted = dtype if dtype and entry.dtype in FLOATS else entry.dtype

    def pieces() -> Iterator[Buffer]:
        for piece in source.pieces(name):
            yield cast(piece, entry.dtype, wanted)

    return Output(name=new_name, dtype=wanted, shape=entry.shape if shape is None else shape, pieces=pieces)


def _write_tensors(write_bytes: Callable[[Buffer], int], ordered: Sequence[Output], *, total: int, report: Report | None) -> None:
    done = 0
    for output in ordered:
        expected = done + prod(output.shape) * BYTES[output.dtype]
        try:
            for piece in output.pieces():
                done += write_bytes(piece)
                if report:
                    report(done, total)
        except ValueError as error:
            raise ValueError(f"{output.name}: {error}") from None
        if done != expected:
            raise ValueError(f"{output.name} does not have the bytes of its shape")


def _entry(name: str, content: Mapping[str, Any], begin: int) -> Entry:
    first, last = content["data_offsets"]
    entry = Entry(dtype=content["dtype"], shape=tuple(content["shape"]), begin=begin + first, end=begin + last)
    if entry.dtype not in BYTES:
        raise ValueError(f"{name} is of type {entry.dtype}, which is not supported")
    if prod(entry.shape) * BYTES[entry.dtype] != entry.end - entry.begin:
        raise ValueError(f"damaged safetensors file: {name} does not have the bytes of its shape")
    return entry
