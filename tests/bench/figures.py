"""What a bench finds out, as tables for people."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks of every group."""

    peers: Path | None = None
    """Folder with diffusers' examples."""
    quick: bool = False
    """One round of the small model, nothing that takes minutes to compile: shows that a bench runs, is no figure to keep."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A thing that was measured, beside what it is compared with."""

    what: str
    measured: str
    ratio: str = ""
    goal: str = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that were measured in one run, A and B in turns."""

    title: str
    words: str
    rows: Sequence[Row] = field(default_factory=tuple)

    def markdown(self) -> str:
        """Title, what was done, and the table."""
        head = ["| | measured | ratio | goal |", "|---|---|---|---|"]
        body = [f"| {row.what} | {row.measured} | {row.ratio} | {row.goal} |" for row in self.rows]
        return "\n".join([f"## {self.title}", "", self.words, "", *head, *body, ""])


def missing(what: str, reason: str) -> Row:
    """The row of what could not be measured, with the last line of why."""
    return Row(what=what, measured=f"not measured: {(reason.splitlines() or ['?'])[-1]}")


def interleaved(calls: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of every call; they take turns, so that what the machine does besides hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-warm_up, rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn >= 0:
                taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in taken.items()}


def times(reference: float, own: float) -> str:
    """How many times faster."""
    return f"{reference / own:.2f}x"
