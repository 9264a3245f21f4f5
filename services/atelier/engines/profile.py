"""The shapes that an engine takes. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT_BATCH_SIZES = (2, 4, 8, 16)
"""UNet batches: guidance doubles a picture, so these are one to eight pictures."""
LARGE_BATCH_SIZES = (2, 4)
"""The same for large pictures on a CPU, where every batch takes gigabytes."""
LARGE_PIXELS = 256 * 256
MAX_BATCH_SIZE = 62
"""diffusers' UNet takes another path from a batch of 64 on, and an exported one ends at 63."""
PICTURE_MULTIPLE = 64
"""Pixels: eight to a latent, and three halvings in the UNet."""
MAX_SIDE = 2048
"""Pixels."""


@dataclass(frozen=True, kw_only=True)
class ShapeProfile:
    """One picture size in pixels, and the UNet batches for which there is a program."""

    width: int
    height: int
    batch_sizes: tuple[int, ...] = DEFAULT_BATCH_SIZES

    def __post_init__(self) -> None:
        for side, value in (("width", self.width), ("height", self.height)):
            if problem := side_problem(value):
                raise ValueError(f"{side} {problem}")
        if problem := batch_sizes_problem(self.batch_sizes):
            raise ValueError(f"batch_sizes {problem}")

    @property
    def key(self) -> str:
        """`512x512-b2.4.8`: the profile's part of an engine's key."""
        return f"{self.width}x{self.height}-b{'.'.join(map(str, self.batch_sizes))}"

    def bucket(self, rows: int) -> int:
        """The smallest batch that takes `rows` rows, or the largest there is."""
        return next((size for size in self.batch_sizes if size >= rows), self.batch_sizes[-1])

    def to_json(self) -> dict[str, Any]:
        """For a manifest."""
        return {"width": self.width, "height": self.height, "batch_sizes": list(self.batch_sizes)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ShapeProfile:
        """Reads what `to_json` wrote."""
        return cls(width=content["width"], height=content["height"], batch_sizes=tuple(content["batch_sizes"]))


def default_batch_sizes(*, device: str, width: int, height: int) -> tuple[int, ...]:
    """The batches for pictures of this size on a `cpu` or on `cuda`."""
    return LARGE_BATCH_SIZES if device == "cpu" and width * height > LARGE_PIXELS else DEFAULT_BATCH_SIZES


def side_problem(pixels: int) -> str:
    """What is wrong with a picture's side; empty when nothing is."""
    if pixels % PICTURE_MULTIPLE or not PICTURE_MULTIPLE <= pixels <= MAX_SIDE:
        return f"must be a multiple of {PICTURE_MULTIPLE} between {PICTURE_MULTIPLE} and {MAX_SIDE}, got {pixels}"
    return ""


def batch_sizes_problem(batch_sizes: tuple[int, ...]) -> str:
    """What is wrong with a list of batches; empty when nothing is."""
    if not batch_sizes or len(batch_sizes) > 8:
        return f"must have 1 to 8 entries, got {len(batch_sizes)}"
    if list(batch_sizes) != sorted(set(batch_sizes)):
        return f"must rise, got {list(batch_sizes)}"
    if not 1 <= batch_sizes[0] <= batch_sizes[-1] <= MAX_BATCH_SIZE:
        return f"must lie between 1 and {MAX_BATCH_SIZE}, got {list(batch_sizes)}"
    return ""
