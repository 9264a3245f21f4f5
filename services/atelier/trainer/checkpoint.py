"""The state a run resumes from, as safetensors and JSON: no pickle is written or read.

`weights/trainable.safetensors` alone can be promoted to a result; with the other files the run goes on bit for bit. Random numbers need no
state: each step's generator is made of seed, step and rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "weights/trainable.safetensors"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is: `losses` holds (step, loss, learning rate)."""

    step: int
    losses: list[tuple[int, float, float]]
    facts: Mapping[str, Any]
    """How it was computed: threads, processes, precision, compiled or eager."""


def write(
    folder: Path,
    *,
    trainable: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    ema: Mapping[str, Tensor] | None,
    progress: Progress,
) -> None:
    """Writes a checkpoint's files into `folder`."""
    (folder / "weights").mkdir(parents=True)
    save_file(_plain(ema or trainable), folder / WEIGHTS)
    state = {}
    for name, parameter in trainable.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{key}/{name}"] = value if torch.is_tensor(value) else torch.tensor(value)
    save_file(_plain(state), folder / "optimizer.safetensors")
    if ema is not None:
        save_file(_plain(trainable), folder / "online.safetensors")
    content = {"step": progress.step, "losses": progress.losses, "facts": dict(progress.facts)}
    (folder / "state.json").write_text(json.dumps(content))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The trainable weights (their average, where one was kept)."""
    return load_file(folder / WEIGHTS)


def read(folder: Path, *, trainable: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, ema: Mapping[str, Tensor] | None) -> Progress:
    """Puts a checkpoint's tensors back in place. Raises ValueError for one that lacks its full state or is of another run's shape."""
    if not (folder / "state.json").exists():
        raise ValueError("only this checkpoint's weights were kept: it can be promoted, not resumed")
    online = load_file(folder / ("online.safetensors" if ema is not None else WEIGHTS))
    if {name: tensor.shape for name, tensor in online.items()} != {name: tensor.shape for name, tensor in trainable.items()}:
        raise ValueError("the checkpoint is of a run with another method, rank, layers or base model")
    state = load_file(folder / "optimizer.safetensors")
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(online[name])
            found = {key.partition("/")[0]: value for key, value in state.items() if key.partition("/")[2] == name}
            if found:
                optimizer.state[parameter] = {k: v.to(parameter.device) if k != "step" else v for k, v in found.items()}
        for name, average in (ema or {}).items():
            average.copy_(load_file(folder / WEIGHTS)[name])
    content = json.loads((folder / "state.json").read_text())
    return Progress(step=content["step"], losses=[(int(s), x, r) for s, x, r in content["losses"]], facts=content["facts"])


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}
