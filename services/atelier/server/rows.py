"""Pictures as rows of one UNet call: which of them go together, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

MAX_EAGER_ROWS = 8
"""Rows of a UNet call where no engine says otherwise."""
WORTH_PADDING = 0.75
"""A batch that is filled so far costs less than two smaller ones: on two cores 8 rows took 70 ms, 4 and 2 took 43 and 30.
It counts until both batches have been measured."""
WORTH_COMPANY = 1.2
"""Rows in company have to be so many times cheaper: below, the oldest picture is held up for too little. With 1.2 the open loop of the
benchmarks had a lower mean and 99th percentile than one at a time; with any company at all they were higher."""
FORGETTING = 1.02


class Rows(Protocol):
    """What a request says of its pictures' rows."""

    guidance_scale: float
    guided: Tensor | None
    """Embeddings [rows, 77, D], negative prompt first."""

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


class Costs:
    """Seconds of a forward by kind (engine and size) and batch, as they were measured."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[Hashable, int], float] = {}

    def record(self, kind: Hashable, batch: int, seconds: float) -> None:
        """Keeps the least, and forgets it slowly: a forward that something else slowed down says little."""
        known = self._seconds.get((kind, batch), seconds)
        self._seconds[kind, batch] = min(seconds, FORGETTING * known)

    def padding_pays(self, kind: Hashable, *, rows: int, above: int, below: int) -> bool:
        """Whether `rows` rows are cheaper each in a batch of `above`, padded, than in a full one of `below`."""
        padded, full = (self._seconds.get((kind, batch)) for batch in (above, below))
        if padded is None or full is None:
            return rows >= WORTH_PADDING * above
        return padded / rows <= full / below

    def company_pays(self, kind: Hashable, *, alone: tuple[int, int], together: tuple[int, int]) -> bool:
        """Whether rows in company are enough cheaper than the oldest picture's own; both are (rows, batch). Unknown costs do."""
        costs = [self._seconds.get((kind, batch)) for _, batch in (alone, together)]
        if costs[0] is None or costs[1] is None:
            return True
        return costs[0] / alone[0] >= WORTH_COMPANY * costs[1] / together[0]


def bucket(rows: int, batches: Sequence[int], *, kind: Hashable, costs: Costs) -> int:
    """The batch for so many waiting rows: the smallest that takes them where padding it is cheaper, else the largest that they fill."""
    if not batches:
        return MAX_EAGER_ROWS
    above = next((size for size in batches if size >= rows), batches[-1])
    below = max((size for size in batches if size <= rows), default=above)
    return above if costs.padding_pays(kind, rows=rows, above=above, below=below) else below


def batch_of(rows: int, batches: Sequence[int]) -> int:
    """The batch that so many rows are computed in: the smallest there is a program for; eager PyTorch takes any."""
    return next((size for size in batches if size >= rows), rows)


def fill(group: Sequence[P], batches: Sequence[int], *, kind: Hashable, costs: Costs) -> list[P]:
    """The first picture, and those after it that make a good batch with it; it goes alone where company would only hold it up."""
    most = bucket(sum(picture.request.rows for picture in group), batches, kind=kind, costs=costs)
    chosen: list[P] = []
    rows = 0
    for picture in group:
        if chosen and rows + picture.request.rows > most:
            break
        chosen.append(picture)
        rows += picture.request.rows
    own = chosen[0].request.rows
    alone, together = (own, batch_of(own, batches)), (rows, batch_of(rows, batches))
    return chosen if costs.company_pays(kind, alone=alone, together=together) else chosen[:1]


def predict(run: Callable[[Tensor, Tensor, Tensor], Tensor], chosen: Sequence[Picture], batches: Sequence[int]) -> list[Tensor]:
    """One UNet call with a row, or two with guidance (negative prompt first), for each picture; guidance done."""
    samples, timesteps, embeddings = [], [], []
    for picture in chosen:
        sample, timestep = picture.sampler.model_input()
        assert picture.request.guided is not None
        for row in picture.request.guided:
            samples.append(sample[0])
            timesteps.append(timestep)
            embeddings.append(row)
    rows = len(samples)
    # The rows that are missing repeat the first and are thrown away.
    index = [*range(rows), *([0] * (batch_of(rows, batches) - rows))]
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
