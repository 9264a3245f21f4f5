"""The Compiler service."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from atelier.artifacts.catalog import Catalog, Record
from atelier.artifacts.manifest import Kind
from atelier.compiler.requests import completed, to_spec
from atelier.compiler.spec import plan, violations
from atelier.errors import AtelierError, Violation, invalid
from atelier.jobs.submission import Submission, Work
from atelier.pools import choose
from atelier.v1 import compiler_pb2, compiler_pb2_grpc, job_pb2

MODEL_KINDS = (Kind.MODEL, Kind.SINGLE_FILE)


class CompilerServicer(compiler_pb2_grpc.CompilerServicer):
    """Turns requests into jobs. `pools`: id of each pool -> the product in its label, `cpu` or like `NVIDIA-A10`."""

    def __init__(self, *, submission: Submission, catalog: Catalog, pools: Mapping[str, str]) -> None:
        self._submission = submission
        self._catalog = catalog
        self._pools = pools

    async def Compile(self, request: compiler_pb2.CompileRequest, context: Any) -> job_pb2.Job:  # type: ignore[override]
        """Starts a compilation, or says what it would do."""
        work = await asyncio.to_thread(self._work, request)
        if request.validate_only:
            return self._submission.preview(work)
        return await asyncio.to_thread(self._submission.submit, "Compile", request, request.request_id, work)

    def _work(self, request: compiler_pb2.CompileRequest) -> Work:
        found: list[Violation] = []
        model = self._model(request.model, found)
        pool, problem = choose(request.pool, self._pools)
        found += [Violation("pool", problem)] if problem else []
        device = "cpu" if self._pools.get(pool, "cpu") == "cpu" else "cuda"
        found += violations(to_spec(request), device=device)
        if found or model is None:
            raise invalid(found)
        spec = completed(request, model=model.name, pool=pool)
        return Work(spec=spec, inputs=[model.digest], plan=plan(to_spec(spec), pool=pool), tags=request.tags, pool=pool)

    def _model(self, name: str, found: list[Violation]) -> Record | None:
        if not name:
            found.append(Violation("model", "must be set"))
            return None
        try:
            record = self._catalog.get(name)
        except AtelierError as error:
            found.append(Violation("model", error.message))
            return None
        if record.manifest.kind not in MODEL_KINDS:
            found.append(Violation("model", f"{name} is a {record.manifest.kind}; expected {' or '.join(MODEL_KINDS)}"))
        return record
