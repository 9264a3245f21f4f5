"""Floating-point tensors as bytes: from one type to another, rounded to nearest even, without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Buffer = bytes | memoryview

FLOATS = ("F64", "F32", "F16", "BF16")
"""The types that are converted here, by safetensors' words for them."""
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_INFINITY = 0x7F80
_NAN = 0x7FC0


def to_fp32(content: Buffer, dtype: str) -> NDArray[np.float32]:
    """Bytes of a floating-point tensor as fp32, flat. Raises ValueError for other types, and where a finite value lies beyond fp32."""
    if dtype == "BF16":
        return (np.frombuffer(content, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype not in _NUMPY:
        raise ValueError(f"{dtype} tensors are not floating point of 16, 32 or 64 bits, and are not converted")
    try:
        with np.errstate(over="raise"):
            return np.frombuffer(content, dtype=_NUMPY[dtype]).astype(np.float32)
    except FloatingPointError:
        raise ValueError("a value lies beyond what F32 can hold") from None


def from_fp32(values: NDArray[np.float32], dtype: str) -> bytes:
    """fp32 values as bytes of another type. Raises ValueError where a finite value lies beyond the type's range."""
    if dtype == "BF16":
        return _to_bf16(values)
    try:
        with np.errstate(over="raise"):
            return np.ascontiguousarray(values).astype(_NUMPY[dtype]).tobytes()
    except FloatingPointError:
        raise ValueError(f"a value lies beyond what {dtype} can hold") from None


def cast(content: Buffer, dtype: str, wanted: str) -> Buffer:
    """Bytes of a tensor as bytes of another type; as they are where it is the same."""
    return content if dtype == wanted else from_fp32(to_fp32(content, dtype), wanted)


def _to_bf16(values: NDArray[np.float32]) -> bytes:
    # bfloat16 is the upper half of fp32: add half of the lower half's range, and one more where the upper half is odd.
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    nan = np.isnan(values)
    if np.any(((rounded & 0x7FFF) == _INFINITY) & np.isfinite(values)):
        raise ValueError("a value lies beyond what BF16 can hold")
    return np.where(nan, np.uint16(_NAN), rounded).astype("<u2").tobytes()
