"""What a compilation comes to on this machine, for this model: backend, precision and shapes. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from atelier import errors
from atelier.compiler.spec import CompileSpec
from atelier.engines.fingerprint import Fingerprint
from atelier.engines.manifest import Backend, EngineManifest, Precision
from atelier.engines.profile import ShapeProfile, default_batch_sizes, side_problem
from atelier.graphs.facts import Facts

DEFAULT_BACKENDS = {"cpu": (Backend.OPENVINO, Backend.INDUCTOR), "cuda": (Backend.INDUCTOR,)}
"""The first that is there."""
BF16_FLAGS = ("avx512_bf16", "amx_bf16")
BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Everything that is decided before a compilation, but for its precision where that is to be measured (None)."""

    backend: Backend
    precision: Precision | None
    profile: ShapeProfile
    fingerprint: Fingerprint

    def manifest(self, graph: str, precision: Precision) -> EngineManifest:
        """What an engine of this target says of itself, before it is built."""
        fingerprint = self.fingerprint.only(self.backend)
        return EngineManifest(graph=graph, fingerprint=fingerprint, backend=self.backend, precision=precision, profile=self.profile)

    def candidates(self) -> tuple[Precision, ...]:
        """The precisions that may come out, in order of preference."""
        return (self.precision,) if self.precision else (Precision.BF16, Precision.FP32)


def resolve(spec: CompileSpec, *, facts: Facts, fingerprint: Fingerprint) -> Target:
    """The target of a compilation on the machine of this fingerprint.

    Raises INVALID_ARGUMENT for a size that the model cannot make, and FAILED_PRECONDITION (BACKEND_NOT_INSTALLED,
    PRECISION_NOT_SUPPORTED) for what this machine lacks.
    """
    width, height = spec.width or facts.width, spec.height or facts.height
    batch_sizes = spec.batch_sizes or default_batch_sizes(device=fingerprint.device, width=width, height=height)
    for side, pixels in (("width", width), ("height", height)):
        if problem := side_problem(pixels):  # the model's own size may have it too
            raise errors.invalid_field(f"profile.{side}", problem)
        if pixels % facts.picture_multiple:
            raise errors.invalid_field(f"profile.{side}", f"must be a multiple of {facts.picture_multiple} for this model, got {pixels}")
    profile = ShapeProfile(width=width, height=height, batch_sizes=batch_sizes)
    return Target(backend=_backend(spec, fingerprint), precision=_precision(spec, fingerprint), profile=profile, fingerprint=fingerprint)


def _backend(spec: CompileSpec, fingerprint: Fingerprint) -> Backend:
    if spec.backend is None:
        return next(backend for backend in DEFAULT_BACKENDS[fingerprint.device] if backend in fingerprint.backends)
    if spec.backend is Backend.TENSORRT:
        from atelier.engines.backends import tensorrt

        tensorrt.require()
    if spec.backend not in fingerprint.backends:
        there = ", ".join(sorted(fingerprint.backends))
        raise errors.failed_precondition("BACKEND_NOT_INSTALLED", f"{spec.backend} is not installed here; there are {there}")
    return spec.backend


def _precision(spec: CompileSpec, fingerprint: Fingerprint) -> Precision | None:
    if fingerprint.device == "cuda":
        has_bf16 = tuple(map(int, fingerprint.capability.split("."))) >= BF16_CAPABILITY
        default: Precision | None = Precision.BF16 if has_bf16 else Precision.FP16
    else:
        has_bf16 = any(map(fingerprint.has_flag, BF16_FLAGS))
        default = None if has_bf16 else Precision.FP32
    if spec.precision is Precision.BF16 and not has_bf16:
        raise errors.failed_precondition("PRECISION_NOT_SUPPORTED", f"{fingerprint.product} does not compute in bf16; take fp32")
    return spec.precision or default
