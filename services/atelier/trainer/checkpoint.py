"""The state a run resumes from, as safetensors and JSON: no pickle is written or read.

What lies below `weights/` is enough to be promoted to a result; with the other files the run goes on bit for bit. Random numbers need no
state: each step's generator is made of seed, step and rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "weights/trainable.safetensors"
PROGRESS = "weights/progress.json"
OPTIMIZER = "optimizer.safetensors"
ONLINE = "online.safetensors"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is: `losses` holds (step, loss, learning rate)."""

    step: int
    losses: list[tuple[int, float, float]]
    facts: Mapping[str, Any]
    """What was trained from what, and how it was computed: threads, processes, precision, compiled or eager."""
    scaler: Mapping[str, float] = field(default_factory=dict)
    """State of the loss scale, where fp16 needs one."""


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
    save_file(_plain(state), folder / OPTIMIZER)
    if ema is not None:
        save_file(_plain(trainable), folder / ONLINE)
    content = {"step": progress.step, "losses": progress.losses, "facts": dict(progress.facts), "scaler": dict(progress.scaler)}
    (folder / PROGRESS).write_text(json.dumps(content))


def read_progress(folder: Path) -> Progress:
    """Where the run was."""
    content = json.loads((folder / PROGRESS).read_text())
    losses = [(int(step), loss, rate) for step, loss, rate in content["losses"]]
    return Progress(step=content["step"], losses=losses, facts=content["facts"], scaler=content["scaler"])


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The trainable weights (their average, where one was kept)."""
    return load_file(folder / WEIGHTS)


def read(folder: Path, *, trainable: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, ema: Mapping[str, Tensor] | None) -> None:
    """Puts a checkpoint's tensors back in place. Raises ValueError for one that lacks its full state or is of another run's shape."""
    if not (folder / OPTIMIZER).exists():
        raise ValueError("only this checkpoint's weights were kept: it can be promoted, not resumed")
    if (folder / ONLINE).exists() != (ema is not None):
        raise ValueError("ema_decay must be set as in the run that goes on: with an average, or without one")
    average = load_file(folder / WEIGHTS)
    online = average if ema is None else load_file(folder / ONLINE)
    if {name: tensor.shape for name, tensor in online.items()} != {name: tensor.shape for name, tensor in trainable.items()}:
        raise ValueError("the checkpoint is of a run with another method, rank, layers or base model")
    state = load_file(folder / OPTIMIZER)
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(online[name])
            optimizer.state[parameter] = {}
        for name, tensor in (ema or {}).items():
            tensor.copy_(average[name])
    for key, value in state.items():
        kind, _, name = key.partition("/")
        optimizer.state[trainable[name]][kind] = value if kind == "step" else value.to(trainable[name].device)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}
