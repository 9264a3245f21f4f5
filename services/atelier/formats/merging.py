"""W' = W + ratio * alpha/r * up @ down, for every module that a LoRA adapts (LoRA, arXiv:2106.09685, section 4.1), streamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atelier.formats.floats import FLOATS, Buffer, from_fp32, to_fp32
from atelier.formats.lora import Matrix, Pair
from atelier.formats.tensorfile import Output, TensorFile, copied


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A LoRA with its ratio."""

    pairs: Mapping[str, Pair]
    ratio: float


def merged(source: TensorFile, loras: Sequence[Weighted], modules: Mapping[str, str], *, dtype: str | None) -> list[Output]:
    """The file's tensors with the LoRAs in them, the others as they are; `modules` gives the module that a tensor's name belongs to."""
    outputs = []
    for name in source.entries:
        pairs = [(lora.pairs[modules[name]], lora.ratio) for lora in loras if modules.get(name) in lora.pairs]
        outputs.append(_merged(source, name, pairs, dtype) if pairs else copied(source, name, name, dtype=dtype))
    return outputs


def misfits(loras: Sequence[Weighted], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Modules of the LoRAs that the model does not have, or has in another shape; `shapes` are its weights' by module."""
    found = []
    for lora in loras:
        for module, pair in lora.pairs.items():
            shape = shapes.get(module)
            wanted = (pair.up.shape[0], *pair.down.shape[1:])
            if shape is None:
                found.append(f"{module} (the model has none)")
            elif _without_ones(wanted) != _without_ones(shape):
                found.append(f"{module} (LoRA {list(wanted)}, model {list(shape)})")
    return found


def delta(pair: Pair) -> NDArray[np.float32]:
    """alpha/r * up @ down [out, in * kernel], fp32. ValueError where that is not finite: a LoRA that diverged would spoil the model."""
    up, down = _matrix(pair.up), _matrix(pair.down)
    found = np.float32(pair.scale) * (up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1))
    if not np.isfinite(found).all():
        raise ValueError("the LoRA's matrices hold or make numbers that are not finite")
    return found


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    # A 1x1 convolution and a linear layer have the same numbers; kohya writes either for both.
    return shape[:2] if set(shape[2:]) <= {1} else shape


def _matrix(matrix: Matrix) -> NDArray[np.float32]:
    return to_fp32(matrix.raw, matrix.dtype).reshape(matrix.shape)


def _merged(source: TensorFile, name: str, pairs: Sequence[tuple[Pair, float]], dtype: str | None) -> Output:
    entry = source.entries[name]
    wanted = dtype if dtype and entry.dtype in FLOATS else entry.dtype

    def pieces() -> Iterator[Buffer]:
        weight = source.array(name)
        for pair, ratio in pairs:
            weight += np.float32(ratio) * delta(pair).reshape(weight.shape)
        yield from_fp32(weight, wanted)

    return Output(name=name, dtype=wanted, shape=entry.shape, pieces=pieces)
