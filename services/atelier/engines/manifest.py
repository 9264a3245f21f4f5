"""What the metadata of an ENGINE artifact says. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from atelier.engines.fingerprint import Fingerprint
from atelier.engines.profile import ShapeProfile


class Backend(StrEnum):
    """What compiles and runs a graph."""

    INDUCTOR = "inductor"
    TENSORRT = "tensorrt"
    OPENVINO = "openvino"


class Precision(StrEnum):
    """What an engine computes in."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True, kw_only=True)
class EngineManifest:
    """An engine without its files: a graph compiled by a backend for one fingerprint, shape profile and precision."""

    graph: str
    """Digest of the UNet's graph."""
    fingerprint: Fingerprint
    """Of the machine that built it, with its one backend."""
    backend: Backend
    precision: Precision
    profile: ShapeProfile
    parity: Mapping[str, Any] = field(default_factory=dict)
    """Relative L2 against eager, by batch, with the bound that it kept."""
    benchmark: Mapping[str, Any] = field(default_factory=dict)
    """Milliseconds a forward, by batch, beside eager fp32 in the same run."""

    @property
    def key(self) -> str:
        """Equal for engines that can stand in for each other."""
        return engine_key(
            graph=self.graph, fingerprint=self.fingerprint, backend=self.backend, precision=self.precision, profile=self.profile
        )

    @property
    def speedup(self) -> float:
        """Times faster than eager fp32 at the smallest batch, as measured where it was built; 0 where it was not."""
        return float(self.benchmark.get("speedup", 0.0))

    def to_metadata(self) -> dict[str, Any]:
        """The artifact's metadata."""
        return {
            "key": self.key,
            "graph": self.graph,
            "fingerprint": self.fingerprint.to_json(),
            "backend": str(self.backend),
            "precision": str(self.precision),
            "profile": self.profile.to_json(),
            "parity": dict(self.parity),
            "benchmark": dict(self.benchmark),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> EngineManifest:
        """Reads what `to_metadata` wrote."""
        return cls(
            graph=metadata["graph"],
            fingerprint=Fingerprint.from_json(metadata["fingerprint"]),
            backend=Backend(metadata["backend"]),
            precision=Precision(metadata["precision"]),
            profile=ShapeProfile.from_json(metadata["profile"]),
            parity=metadata["parity"],
            benchmark=metadata["benchmark"],
        )


def engine_key(*, graph: str, fingerprint: Fingerprint, backend: Backend, precision: Precision, profile: ShapeProfile) -> str:
    """The key under which an engine is looked up; `fingerprint` may be a whole machine's."""
    return f"{graph}/{fingerprint.only(backend).key}/{backend}/{precision}/{profile.key}"


def usable(engines: Iterable[EngineManifest], *, graph: str, fingerprint: Fingerprint) -> list[EngineManifest]:
    """Those that run this graph on the machine of this fingerprint, the fastest first."""
    fitting = [engine for engine in engines if engine.graph == graph and not engine.fingerprint.differences(fingerprint)]
    return sorted(fitting, key=lambda engine: -engine.speedup)
