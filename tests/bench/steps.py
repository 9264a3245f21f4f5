"""The step loop: requests of every kind together, beside the same requests one at a time."""

from __future__ import annotations

import random
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import accumulate
from math import ceil
from pathlib import Path
from typing import Any

import torch

from atelier import base_model
from atelier.engines import engine as engines
from atelier.engines.backends import openvino
from atelier.engines.detect import detect
from atelier.engines.manifest import Backend, EngineManifest, Precision
from atelier.engines.profile import ShapeProfile
from atelier.engines.program import unet_program
from atelier.graphs.facts import read_facts
from atelier.graphs.graph import Role, read_graph
from atelier.graphs.model import load_model
from atelier.server.batching import Request, StepLoop
from atelier.server.passing_thread import in_passing_thread
from atelier.server.weights import BOUND_BATCHES, Compiled, Variant
from bench.figures import Asked, Group, Row, interleaved, times

SIDE, TOGETHER = 128, 16
ALONE, MANY = 1, 64
"""Pictures in work at once."""
SHARE = 0.8
"""Of the one-at-a-time capacity, in the open loop."""
ARRIVALS = 100
"""Of each seed of the open loop."""


def groups(asked: Asked) -> list[Group]:
    """Throughput of a full loop, and latency under a load that one at a time can just bear."""
    rows: list[Row] = []
    seeds = range(1 if asked.quick else 2)
    with tempfile.TemporaryDirectory() as place:
        first, second = in_passing_thread(lambda: _variants(Path(place)))
        rows += _compared("OpenVINO", (first, second), rounds=1 if asked.quick else 3, seeds=seeds)
        first.compiled = second.compiled = None
        rows += _compared("eager", (first, second), rounds=1 if asked.quick else 3, seeds=())
    words = (
        f"{TOGETHER} requests of one picture, {SIDE} pixels, with 12 to 25 steps, five samplers, four guidance scales (one without), two "
        f"models, three to one. Then {ARRIVALS} of them arrive at random (Poisson, {len(seeds)} seeds, the same for both) at "
        f"{SHARE:.0%} of what one at a time can do. OpenVINO: fp32, bound, as a replica has it."
    )
    return [Group(title="Step loop", words=words, rows=rows)]


def _compared(words: str, variants: Sequence[Variant], *, rounds: int, seeds: Sequence[int]) -> list[Row]:
    calls = {most: lambda most=most: _latencies(most, variants, [0.0] * TOGETHER) for most in (ALONE, MANY)}
    seconds = interleaved({str(most): call for most, call in calls.items()}, rounds=rounds)
    one, all_ = (seconds[str(most)] / TOGETHER for most in (ALONE, MANY))
    closed = [
        Row(what=f"{words}: one at a time", measured=f"{1 / one:.2f} pictures/s", ratio="1.00x"),
        Row(what=f"{words}: together", measured=f"{1 / all_:.2f} pictures/s", ratio=times(one, all_), goal=">= 1.3x"),
    ]
    return closed + (_arriving(words, variants, SHARE / one, seeds) if seeds else [])


def _arriving(words: str, variants: Sequence[Variant], rate: float, seeds: Sequence[int]) -> list[Row]:
    latencies: dict[int, list[float]] = {ALONE: [], MANY: []}
    for seed in seeds:
        gaps = random.Random(seed)
        arrivals = list(accumulate(gaps.expovariate(rate) for _ in range(ARRIVALS)))
        for most, found in latencies.items():
            found += _latencies(most, variants, arrivals)
    slow, fast = (_p99(found) for found in latencies.values())
    return [
        Row(what=f"{words}: one at a time, arriving", measured=_spread(latencies[ALONE]), ratio="1.00x"),
        Row(what=f"{words}: together, arriving", measured=_spread(latencies[MANY]), ratio=f"p99 {times(slow, fast)}", goal="p99 not worse"),
    ]


def _p99(latencies: Sequence[float]) -> float:
    return sorted(latencies)[ceil(0.99 * len(latencies)) - 1]


def _spread(latencies: Sequence[float]) -> str:
    return f"median {statistics.median(latencies):.2f} s, p99 {_p99(latencies):.2f} s"


def _latencies(most: int, variants: Sequence[Variant], arrivals: Sequence[float]) -> list[float]:
    """Seconds from arrival to the picture of each request in a loop that works on `most` at once; `arrivals` are seconds from now."""
    # A loop for each run: two at a time would slow each other down even when they rest, see `passing_thread`.
    loop = StepLoop(max_live=most)
    loop.start()
    begin = time.perf_counter()
    ends = [threading.Event() for _ in arrivals]
    taken = [0.0] * len(arrivals)
    for index, at in enumerate(arrivals):
        time.sleep(max(0.0, begin + at - time.perf_counter()))

        def end(error: Exception | None, index: int = index, at: float = at) -> None:
            assert error is None, error
            taken[index] = time.perf_counter() - begin - at
            ends[index].set()

        loop.submit(_request(index, variants, end))
    for event in ends:
        assert event.wait(600)
    loop.stop()
    return taken


def _request(index: int, variants: Sequence[Variant], end: Any) -> Request:
    return Request(
        weights=variants[1 if index % 4 == 3 else 0], prompt="a noto emoji of a fox on a blue background", negative_prompt="", width=SIDE,
        height=SIDE, num_steps=(12, 16, 20, 25)[index % 4], guidance_scale=(3.0, 5.0, 7.5, 1.0)[index // 4 % 4],
        sampler=("EULER", "EULER_A", "DDIM", "DPMPP_2M", "UNIPC")[index % 5], seed=index, count=1, preview_steps=0,
        on_progress=lambda *_: None, on_picture=lambda *_: None, on_end=end,
    )  # fmt: skip


def _variants(place: Path) -> list[Variant]:
    """Two models on one engine as a replica has it, after it was bound."""
    model = base_model.folder()
    facts, graph, fingerprint = read_facts(model), read_graph(model, Role.UNET), detect("cpu")
    profile = ShapeProfile(width=SIDE, height=SIDE)
    (place / "unet").mkdir()
    openvino.build(unet_program(model, graph, facts, profile=profile, precision=Precision.FP32), place / "unet")
    own = fingerprint.only(Backend.OPENVINO)
    manifest = EngineManifest(graph=graph.digest, fingerprint=own, backend=Backend.OPENVINO, precision=Precision.FP32, profile=profile)
    engine = engines.load(place, manifest=manifest, fingerprint=fingerprint, num_threads=torch.get_num_threads())
    variants = [Variant(name, load_model(model)) for name in ("first", "second")]
    for variant in variants:
        runner = engine.bind(variant.weights, batch_sizes=profile.batch_sizes[:BOUND_BATCHES])
        variant.compiled = Compiled(digest=variant.name, engine=engine, runner=runner, bound=True)
    return variants
