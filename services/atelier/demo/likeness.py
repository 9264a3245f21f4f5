"""How alike two drawings are, whatever their backgrounds: a plain measure that needs no model.

The background is the median colour of the border; what differs from it is the drawing, cut out to its bounding box. Three features are
compared by cosine and averaged: the silhouette, the directions of edges (HOG, Dalal and Triggs 2005), and the colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]

SIDE = 64
"""Drawings are compared at this size, in pixels."""
CELL, DIRECTIONS, LEVELS = 8, 9, 4


def likeness(a: Image.Image, b: Image.Image) -> float:
    """0 (nothing in common) to 1 (equal)."""
    return sum(_cosine(x, y) for x, y in zip(features(a), features(b), strict=True)) / 3


def mean_likeness(pictures: Sequence[Image.Image], references: Sequence[Image.Image]) -> float:
    """The mean over the pictures of their likeness to the reference they are most like."""
    return sum(max(likeness(picture, reference) for reference in references) for picture in pictures) / len(pictures)


def ranking(pictures: Sequence[Image.Image], references: Mapping[str, Sequence[Image.Image]]) -> dict[str, float]:
    """Mean likeness to each object, the most alike first."""
    found = {name: mean_likeness(pictures, examples) for name, examples in references.items()}
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def features(image: Image.Image) -> tuple[Array, Array, Array]:
    """Silhouette [256], edge directions [576] and colours [64] of the drawing, each centred where that says more."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    mask = _mask(pixels)
    box = _box(mask)
    cut = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)
    small = np.asarray(cut, dtype=np.float64) / 255
    shape = Image.fromarray((mask * 255).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)
    weight = np.asarray(shape, dtype=np.float64) / 255
    silhouette = weight.reshape(16, 4, 16, 4).mean((1, 3)).ravel()
    return silhouette - silhouette.mean(), _edges(small, weight), _colours(small, weight)


def _mask(pixels: Array) -> Array:
    border = np.concatenate(
        [pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3), pixels[:, :3].reshape(-1, 3), pixels[:, -3:].reshape(-1, 3)]
    )
    distance = np.linalg.norm(pixels - np.median(border, axis=0), axis=2)
    mask: Array = np.clip((distance - 0.12) / 0.12, 0, 1)
    return mask


def _box(mask: Array) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.mean(1) > 0.03), np.flatnonzero(mask.mean(0) > 0.03)
    if not len(rows) or not len(columns):
        return 0, 0, mask.shape[1], mask.shape[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _edges(pixels: Array, weight: Array) -> Array:
    grey = (pixels.mean(2) - 0.5) * weight
    down, right = np.gradient(grey)
    strength, direction = np.hypot(down, right), np.arctan2(down, right) % np.pi
    bins = np.minimum((direction / np.pi * DIRECTIONS).astype(int), DIRECTIONS - 1)
    cells = np.zeros((SIDE // CELL, SIDE // CELL, DIRECTIONS))
    rows, columns = np.indices(grey.shape) // CELL
    np.add.at(cells, (rows, columns, bins), strength)
    normed = cells / (np.linalg.norm(cells, axis=2, keepdims=True) + 0.1)
    centred: Array = (normed - normed.mean()).ravel()
    return centred


def _colours(pixels: Array, weight: Array) -> Array:
    levels = np.minimum((pixels * LEVELS).astype(int), LEVELS - 1)
    codes = (levels[..., 0] * LEVELS + levels[..., 1]) * LEVELS + levels[..., 2]
    counts = np.bincount(codes.ravel(), weights=weight.ravel(), minlength=LEVELS**3)
    shares: Array = np.sqrt(counts / (counts.sum() + 1e-9))
    return shares


def _cosine(a: Array, b: Array) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-9))
