"""safetensors files from strangers, and files far larger than the memory that is used for them."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atelier.artifacts.safety import Format, sniff
from atelier.formats.tensorfile import TensorFile


def entry(begin: Any, end: Any, *, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 4), "b": entry(0, 4)},
        {"a": entry(0, 4), "b": entry(2, 6)},
        {"a": entry(0, 4), "b": entry(8, 12)},
        {"a": entry(0, 4000)},
        {"a": entry(-4, 0)},
        {"a": entry(4, 0), "b": entry(0, 4)},
        {"a": entry(0.0, 8.0)},
        {"a": entry(0, 8, shape=[-1, -2])},
        {"a": entry(0, 8, shape=[1 << 62, 8])},
        {"a": entry(0, 8, shape="ab")},
        {"a": entry(0, 8, dtype=["F32"])},
        {"a": entry(0, 8, dtype="F33")},
        {"a": entry(0, 8, shape=[3])},
        {"a": {"data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
        {"a": entry(0, 8, shape=[2]), "__metadata__": ["x"]},
        {"a": entry(0, 8, shape=[2]), "__metadata__": {"x": 1}},
        {"a": 3},
        ["a"],
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
    with pytest.raises(ValueError, match=r"safetensors|not supported"):
        TensorFile(tmp_path / "x.safetensors")


@pytest.mark.parametrize("length", [0, 1, 1 << 20, (100 << 20) + 1, (1 << 64) - 1])
def test_a_header_of_impossible_length_is_not_read(tmp_path: Path, length: int) -> None:
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" + b" " * 100)
    with pytest.raises(ValueError, match="length is impossible"):
        TensorFile(tmp_path / "x.safetensors")


def test_a_header_without_end_is_refused(tmp_path: Path) -> None:
    text = b'{"a":' + b"[" * 200_000
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ValueError, match="cannot be read"):
        TensorFile(tmp_path / "x.safetensors")
    assert sniff(tmp_path / "x.safetensors") is not Format.SAFETENSORS


MEASURED = """
import resource, sys
from pathlib import Path
import numpy as np
from atelier.formats import lora, merging
from atelier.formats.tensorfile import Output, TensorFile, copied, write

folder, elements, count = Path(sys.argv[1]), 4 << 20, 40
zeros = np.zeros(elements, "<f2").tobytes()
outputs = [Output(name=f"{i}.weight", dtype="F16", shape=(2048, 2048), pieces=lambda: [zeros]) for i in range(count)]
write(folder / "large.safetensors", outputs, {})
square = [lora.Matrix(dtype="F16", shape=shape, raw=np.ones(shape, "<f2").tobytes()) for shape in ((4, 2048), (2048, 4))]
loras = [merging.Weighted(pairs={str(i): lora.Pair(down=square[0], up=square[1]) for i in range(count)}, ratio=0.5)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = TensorFile(folder / "large.safetensors")
if sys.argv[2] == "copy":
    write(folder / "out.safetensors", [copied(source, name, f"new.{name}", dtype="F32") for name in source.entries], {})
else:
    write(folder / "out.safetensors", merging.merged(source, loras, {f"{i}.weight": str(i) for i in range(count)}, dtype=None), {})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize(("work", "tensors"), [("copy", 4), ("merge", 10)])
def test_memory_stays_near_a_tensor(tmp_path: Path, work: str, tensors: int) -> None:
    """40 tensors of 8 MiB: a merge holds its sum, a product and their rounded form, in fp32 and for one tensor."""
    done = subprocess.run([sys.executable, "-c", MEASURED, str(tmp_path), work], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 8 * tensors
