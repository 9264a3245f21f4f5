"""Pictures as rows of one UNet call: which of them go together, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

MAX_EAGER_ROWS = 8
"""Rows of a UNet call where no engine says otherwise."""
WORTH_PADDING = 0.75
"""A batch that is filled so far costs less than two smaller ones: on two cores 8 rows took 70 ms, 4 and 2 took 43 and 30."""


class Rows(Protocol):
    """What a request says of its pictures' rows."""

    guidance_scale: float
    guided: Tensor | None
    """Embeddings [rows, 77, D], empty prompt first."""

    @property
    def rows(self) -> int:
        """Rows that each picture takes: two with guidance."""


class Picture(Protocol):
    """A picture in work."""

    @property
    def request(self) -> Rows:
        """Its request."""

    @property
    def sampler(self) -> Any:
        """Its `PictureSampler`."""


P = TypeVar("P", bound=Picture)


def bucket(rows: int, batches: Sequence[int]) -> int:
    """The batch for so many waiting rows: the next larger one where they nearly fill it, else one that they fill."""
    if not batches:
        return MAX_EAGER_ROWS
    above = next((size for size in batches if size >= rows), batches[-1])
    below = max((size for size in batches if size <= rows), default=batches[0])
    return above if rows >= WORTH_PADDING * above else below


def fill(group: Sequence[P], batches: Sequence[int]) -> list[P]:
    """Oldest first, as many pictures as make a good batch."""
    most = bucket(sum(picture.request.rows for picture in group), batches)
    chosen: list[P] = []
    rows = 0
    for picture in group:
        if chosen and rows + picture.request.rows > most:
            break
        chosen.append(picture)
        rows += picture.request.rows
    return chosen


def predict(run: Callable[[Tensor, Tensor, Tensor], Tensor], chosen: Sequence[Picture], batches: Sequence[int]) -> list[Tensor]:
    """One UNet call with a row, or two with guidance (empty prompt first), for each picture; guidance done."""
    samples, timesteps, embeddings = [], [], []
    for picture in chosen:
        sample, timestep = picture.sampler.model_input()
        assert picture.request.guided is not None
        for row in picture.request.guided:
            samples.append(sample[0])
            timesteps.append(timestep)
            embeddings.append(row)
    rows = len(samples)
    # The smallest batch there is a program for; the rows that are missing repeat the first and are thrown away.
    padding = next((size for size in batches if size >= rows), rows) - rows
    index = [*range(rows), *([0] * padding)]
    predictions = run(
        torch.stack([samples[i] for i in index]), torch.stack([timesteps[i] for i in index]), torch.stack([embeddings[i] for i in index])
    )
    results, row = [], 0
    for picture in chosen:
        request = picture.request
        if request.rows == 2:
            empty, wanted = predictions[row : row + 1], predictions[row + 1 : row + 2]
            results.append(empty + request.guidance_scale * (wanted - empty))
        else:
            results.append(predictions[row : row + 1])
        row += request.rows
    return results
