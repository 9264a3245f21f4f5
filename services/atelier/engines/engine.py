"""Engines as the server and the compiler use them.

An engine holds no weights. `open` gives a runner for one model's weights, `bind` a faster one with the weights compiled in, where the
backend can do that. Any number of runners of one engine live side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from atelier.engines.fingerprint import Fingerprint
from atelier.engines.manifest import Backend, EngineManifest
from atelier.engines.profile import ShapeProfile
from atelier.graphs.graph import Role


class Runner(Protocol):
    """A UNet with its weights. One thread at a time calls it, on the engine's device, without gradients."""

    def __call__(self, sample: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor, /) -> Tensor:
        """One forward: sample [B, C, H/8, W/8], timesteps [B] (whole or not), encoder_hidden_states [B, 77, D] -> [B, C, H/8, W/8].

        Inputs may be of any float dtype; the result has the sample's. The batch is one of the profile's and the size is its size,
        else ValueError.
        """


class Engine(Protocol):
    """A compiled UNet without weights."""

    @property
    def manifest(self) -> EngineManifest:
        """What it is."""

    @property
    def profile(self) -> ShapeProfile:
        """The shapes it takes."""

    @property
    def can_bind(self) -> bool:
        """Whether `bind` gives anything."""

    def open(self, weights: Mapping[str, Tensor]) -> Runner:
        """A runner with these weights; milliseconds, compiles nothing.

        `weights` are the UNet's tensors by name (`graphs.weights.read_weights(folder, "unet")`), in any float dtype; those that have the
        engine's dtype and layout already are used where they lie and must not change as long as the runner lives. Raises ValueError that
        names a tensor which is missing, surplus or of another shape.
        """

    def bind(self, weights: Mapping[str, Tensor], *, batch_sizes: tuple[int, ...] = ()) -> Runner:
        """A runner with these weights compiled in; seconds, to be called beside the thread that runs the engine.

        Each batch takes another copy of the weights, so `batch_sizes` may name those that pay (none named: all); the others stay open.
        Raises ValueError where the backend cannot, or where the result does not agree with `open`'s at the parity timesteps.
        """


def load(folder: Path, *, manifest: EngineManifest, fingerprint: Fingerprint, device: str = "cpu", num_threads: int = 0) -> Engine:
    """Loads an engine from its artifact's folder, whose signature the caller has checked.

    `fingerprint` is this machine's; `num_threads` counts for backends with threads of their own (0: theirs to choose). Raises
    FAILED_PRECONDITION (ENGINE_FINGERPRINT_MISMATCH) for an engine of another machine, before any of its code runs.
    """
    manifest.fingerprint.check(fingerprint)
    place = folder / Role.UNET
    match manifest.backend:
        case Backend.OPENVINO:
            from atelier.engines.backends import openvino

            return openvino.load(place, manifest=manifest, num_threads=num_threads)
        case Backend.INDUCTOR:
            from atelier.engines.backends import inductor

            return inductor.load(place, manifest=manifest, device=device)
        case Backend.TENSORRT:
            from atelier.engines.backends import tensorrt_runtime

            return tensorrt_runtime.load(place, manifest=manifest, device=device)
