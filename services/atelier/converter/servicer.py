"""The Converter service."""

from __future__ import annotations

import asyncio
import math
import re
from typing import Any

from atelier.artifacts.catalog import Catalog, Record
from atelier.artifacts.manifest import Kind
from atelier.errors import AtelierError, Violation, invalid
from atelier.jobs.submission import Submission, Work
from atelier.v1 import converter_pb2, converter_pb2_grpc, job_pb2

FORMATS: dict[int, tuple[Kind, ...]] = {
    converter_pb2.FORMAT_SINGLE_FILE: (Kind.MODEL,),
    converter_pb2.FORMAT_DIFFUSERS: (Kind.SINGLE_FILE,),
    converter_pb2.FORMAT_LORA_DIFFUSERS: (Kind.LORA, Kind.LEGACY),
    converter_pb2.FORMAT_LORA_WEBUI: (Kind.LORA, Kind.LEGACY),
    converter_pb2.FORMAT_LORA_PEFT: (Kind.LORA, Kind.LEGACY),
}
"""What each format is made from."""
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_LORAS = 32
MAX_RATIO = 10.0


class ConverterServicer(converter_pb2_grpc.ConverterServicer):
    """Turns requests into jobs."""

    def __init__(self, *, submission: Submission, catalog: Catalog) -> None:
        self._submission = submission
        self._catalog = catalog

    async def Convert(self, request: converter_pb2.ConvertRequest, context: Any) -> job_pb2.Job:  # type: ignore[override]
        """Starts a conversion, or says what it would do."""
        work = await asyncio.to_thread(self._conversion, request)
        if request.validate_only:
            return self._submission.preview(work)
        return await asyncio.to_thread(self._submission.submit, "Convert", request, request.request_id, work)

    async def Merge(self, request: converter_pb2.MergeRequest, context: Any) -> job_pb2.Job:  # type: ignore[override]
        """Starts a merge, or says what it would do."""
        work = await asyncio.to_thread(self._merging, request)
        if request.validate_only:
            return self._submission.preview(work)
        return await asyncio.to_thread(self._submission.submit, "Merge", request, request.request_id, work)

    def _conversion(self, request: converter_pb2.ConvertRequest) -> Work:
        violations: list[Violation] = []
        if not request.to:
            violations.append(Violation("to", f"must be set: {', '.join(converter_pb2.Format.Name(f) for f in FORMATS)}"))  # type: ignore[arg-type]
        source = self._record("source", request.source, FORMATS.get(request.to, tuple(Kind)), violations)
        config = self._record("config", request.config, (Kind.MODEL,), violations) if request.config else None
        _check_file_name(request.file_name, violations)
        if violations or source is None:
            raise invalid(violations)
        spec = converter_pb2.ConvertRequest()
        spec.CopyFrom(request)
        spec.source = source.name
        if config:
            spec.config = config.name
        spec.ClearField("request_id")
        plan = [f"{source.manifest.kind} {source.name} becomes {converter_pb2.Format.Name(request.to).removeprefix('FORMAT_')}"]
        return Work(spec=spec, inputs=[r.digest for r in (source, config) if r], plan=plan, tags=request.tags)

    def _merging(self, request: converter_pb2.MergeRequest) -> Work:
        violations: list[Violation] = []
        base = self._record("base", request.base, (Kind.MODEL, Kind.SINGLE_FILE), violations)
        if not 0 < len(request.loras) <= MAX_LORAS:
            violations.append(Violation("loras", f"1 to {MAX_LORAS}, got {len(request.loras)}"))
        loras = []
        for index, item in enumerate(request.loras):
            loras.append(self._record(f"loras[{index}].lora", item.lora, (Kind.LORA,), violations))
            if not math.isfinite(item.ratio) or abs(item.ratio) > MAX_RATIO:
                violations.append(Violation(f"loras[{index}].ratio", f"must be finite and within {MAX_RATIO:g}, got {item.ratio}"))
        _check_file_name(request.file_name, violations)
        if violations or base is None:
            raise invalid(violations)
        spec = converter_pb2.MergeRequest()
        spec.CopyFrom(request)
        spec.base = base.name
        for item, record in zip(spec.loras, loras, strict=True):
            item.lora = record.name if record else ""
        spec.ClearField("request_id")
        plan = [f"{base.manifest.kind} {base.name}", *(f"+ {item.ratio:g} x {item.lora}" for item in spec.loras)]
        inputs = [base.digest, *(record.digest for record in loras if record)]
        return Work(spec=spec, inputs=inputs, plan=plan, tags=request.tags)

    def _record(self, field: str, name: str, kinds: tuple[Kind, ...], violations: list[Violation]) -> Record | None:
        if not name:
            violations.append(Violation(field, "must be set"))
            return None
        try:
            record = self._catalog.get(name)
        except AtelierError as error:
            violations.append(Violation(field, error.message))
            return None
        if record.manifest.kind not in kinds:
            hint = " (`atelier convert` reads a pickled LoRA)" if record.manifest.kind is Kind.LEGACY else ""
            violations.append(Violation(field, f"{name} is a {record.manifest.kind}; expected {' or '.join(kinds)}{hint}"))
        return record


def _check_file_name(name: str, violations: list[Violation]) -> None:
    if name and not FILE_NAME.fullmatch(name):
        violations.append(Violation("file_name", "use letters, digits, dots, dashes and underscores, at most 100, without the ending"))
