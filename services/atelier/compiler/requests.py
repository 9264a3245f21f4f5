"""CompileRequest -> CompileSpec."""

from __future__ import annotations

from atelier.compiler.spec import CompileSpec, Output
from atelier.engines.manifest import Backend, Precision
from atelier.v1 import compiler_pb2


def to_spec(request: compiler_pb2.CompileRequest) -> CompileSpec:
    """The compilation that a request asks for; its enums have known values (the interceptor sees to that)."""
    backend = compiler_pb2.Backend.Name(request.backend).removeprefix("BACKEND_").lower()
    precision = compiler_pb2.EnginePrecision.Name(request.precision).removeprefix("ENGINE_PRECISION_").lower()
    output = compiler_pb2.CompileOutput.Name(request.output).removeprefix("COMPILE_OUTPUT_")
    return CompileSpec(
        model=request.model,
        backend=Backend(backend) if request.backend else None,
        precision=Precision(precision) if request.precision else None,
        width=request.profile.width,
        height=request.profile.height,
        batch_sizes=tuple(request.profile.batch_sizes),
        output=Output(output) if request.output else Output.ENGINE,
        force=request.force,
    )


def completed(request: compiler_pb2.CompileRequest, *, model: str, pool: str) -> compiler_pb2.CompileRequest:
    """The request with defaults filled in and names resolved, as the job keeps it."""
    full = compiler_pb2.CompileRequest()
    full.CopyFrom(request)
    full.ClearField("request_id")
    full.ClearField("validate_only")
    full.model = model
    full.pool = f"pools/{pool}"
    if not full.output:
        full.output = compiler_pb2.COMPILE_OUTPUT_ENGINE
    return full
