"""How long a forward takes, and what follows from it."""

from __future__ import annotations

import statistics
import time

import torch

from atelier.engines.engine import Runner
from atelier.engines.manifest import Precision
from atelier.engines.parity import Inputs

BUDGET_SECONDS = 1.0
MAX_FORWARDS = 20
BF16_GAIN = 1.05
"""bf16 costs accuracy, so it has to be so many times faster than fp32."""
PROBES = 4
PROBING_SECONDS = 5.0
"""After so long two probes have to do: a forward of a large UNet takes seconds, and little else."""


def milliseconds(runner: Runner, inputs: Inputs, *, batch: int) -> float:
    """Median milliseconds of a forward, after one that does not count: at least one, at most 20, for about a second."""
    rows = inputs.sample[:batch], inputs.timesteps[:batch], inputs.encoder_hidden_states[:batch]
    taken: list[float] = []
    runner(*rows)
    while not taken or (len(taken) < MAX_FORWARDS and sum(taken) < BUDGET_SECONDS):
        _wait(inputs)
        start = time.perf_counter()
        runner(*rows)
        _wait(inputs)
        taken.append(time.perf_counter() - start)
    return round(statistics.median(taken) * 1000, 2)


def faster_precision(*, fp32: Runner, bf16: Runner, inputs: Inputs, batch: int, probing_seconds: float = PROBING_SECONDS) -> Precision:
    """bf16 where it is clearly faster than fp32 on this processor, by runners of the same UNet.

    Having the instructions is not enough: with avx512_bf16 and without AMX, bf16 was 1.2-1.3 times faster on one maker's processors and
    1.3-1.6 times slower on another's, in eager PyTorch, inductor and OpenVINO alike. So eager PyTorch tells for all of them.
    """
    rows = inputs.sample[:batch], inputs.timesteps[:batch], inputs.encoder_hidden_states[:batch]
    best = {fp32: float("inf"), bf16: float("inf")}
    begin = time.perf_counter()
    for probe in range(PROBES):
        if probe > 1 and time.perf_counter() - begin > probing_seconds:
            break
        for runner in best:
            start = time.perf_counter()
            runner(*rows)
            seconds = time.perf_counter() - start
            # The first forward also sets threads and memory up.
            best[runner] = min(best[runner], seconds) if probe else best[runner]
    return Precision.BF16 if best[fp32] > BF16_GAIN * best[bf16] else Precision.FP32


def _wait(inputs: Inputs) -> None:
    if inputs.sample.is_cuda:
        torch.cuda.synchronize(inputs.sample.device)
