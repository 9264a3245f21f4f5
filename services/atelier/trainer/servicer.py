"""The Trainer service."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Collection
from typing import Any

from google.protobuf import any_pb2

from atelier.artifacts.catalog import Catalog, Record
from atelier.artifacts.manifest import Kind
from atelier.artifacts.safety import safetensors_header
from atelier.errors import AtelierError, Violation, invalid, invalid_field
from atelier.jobs.ledger import JobLedger
from atelier.jobs.submission import Submission, Work
from atelier.pools import choose
from atelier.trainer.planning import count_pictures, plan
from atelier.trainer.requests import completed, to_spec
from atelier.v1 import job_pb2, trainer_pb2, trainer_pb2_grpc

_FIELDS = {
    "pretrained_model_name_or_path": (Kind.MODEL, Kind.SINGLE_FILE),
    "instance_data_dir": (Kind.DATASET,),
    "class_data_dir": (Kind.DATASET,),
}
_UNET_OF_SINGLE_FILE = "model.diffusion_model."
_RESUME = re.compile(r"(jobs/[a-z0-9-]+)(/checkpoint-(\d+))?")


class TrainerServicer(trainer_pb2_grpc.TrainerServicer):
    """Turns requests into jobs. `pools`: the ids of those that there are."""

    def __init__(self, *, submission: Submission, catalog: Catalog, ledger: JobLedger, pools: Collection[str]) -> None:
        self._submission = submission
        self._catalog = catalog
        self._ledger = ledger
        self._pools = pools

    async def Train(self, request: trainer_pb2.TrainRequest, context: Any) -> job_pb2.Job:  # type: ignore[override]
        """Starts a run, or says what it would do."""
        work = await asyncio.to_thread(self._work, request)
        if request.validate_only:
            return self._submission.preview(work)
        return await asyncio.to_thread(self._submission.submit, "Train", request, request.request_id, work)

    async def Promote(self, request: trainer_pb2.PromoteRequest, context: Any) -> job_pb2.Job:  # type: ignore[override]
        """Makes an earlier checkpoint the result: the run again, from that checkpoint to that checkpoint."""
        work = await asyncio.to_thread(self._promotion, request)
        return await asyncio.to_thread(self._submission.submit, "Promote", request, request.request_id, work)

    def _work(self, request: trainer_pb2.TrainRequest) -> Work:
        violations: list[Violation] = []
        records = self._resolve(request, violations)
        pool, problem = choose(request.pool, self._pools)
        violations += [Violation("pool", problem)] if problem else []
        try:
            spec, warnings = to_spec(request, drawn_seed=secrets.randbits(32))
        except AtelierError as error:
            violations += error.violations
        reads = self._check_resume(request.resume_from_checkpoint, violations)
        if violations:
            raise invalid(violations)
        full = completed(request, spec)
        full.pool = f"pools/{pool}"
        for field, record in records.items():
            setattr(full, field, record.name)
        given = records.get("class_data_dir")
        lines = plan(
            spec,
            num_instance=count_pictures(records["instance_data_dir"].manifest),
            num_class=min(count_pictures(given.manifest), spec.num_class_images) if given else 0,
            unet=self._unet(records["pretrained_model_name_or_path"]),
            warnings=warnings,
        )
        inputs = [record.digest for record in records.values()]
        return Work(spec=full, inputs=inputs, reads=reads, plan=lines, tags=request.tags, processes=spec.num_processes, pool=pool)

    def _resolve(self, request: trainer_pb2.TrainRequest, violations: list[Violation]) -> dict[str, Record]:
        records = {}
        for field, kinds in _FIELDS.items():
            name = getattr(request, field)
            if not name:
                continue
            try:
                record = self._catalog.get(name)
            except AtelierError as error:
                violations.append(Violation(field, error.message))
                continue
            if record.manifest.kind not in kinds:
                violations.append(Violation(field, f"{name} is a {record.manifest.kind}; expected {' or '.join(kinds)}"))
            records[field] = record
        return records

    def _check_resume(self, name: str, violations: list[Violation]) -> list[str]:
        if not name:
            return []
        match = _RESUME.fullmatch(name)
        if not match:
            violations.append(Violation("resume_from_checkpoint", f"{name!r} is neither `jobs/ID` nor `jobs/ID/checkpoint-STEP`"))
            return []
        try:
            steps = [c.step for c in self._ledger.checkpoints(match[1])]
        except AtelierError as error:
            violations.append(Violation("resume_from_checkpoint", error.message))
            return []
        if not steps or (match[3] and int(match[3]) not in steps):
            there = ", ".join(map(str, steps)) or "none"
            violations.append(Violation("resume_from_checkpoint", f"{match[1]} has no such checkpoint; there are: {there}"))
        return [match[1]]

    def _promotion(self, request: trainer_pb2.PromoteRequest) -> Work:
        name = request.run
        if not name.startswith("jobs/"):
            name = self._catalog.get(name).job
        job = self._ledger.get(name)
        spec = trainer_pb2.TrainRequest()
        if not _unpack(job.spec, spec):
            raise invalid_field("run", f"{name} is no training run")
        spec.resume_from_checkpoint = f"{name}/checkpoint-{request.step}"
        spec.max_train_steps = request.step
        spec.ClearField("tags")
        violations: list[Violation] = []
        reads = self._check_resume(spec.resume_from_checkpoint, violations)
        if violations:
            raise invalid([Violation("step", violation.description) for violation in violations])
        line = f"step {request.step} of {name} becomes its result"
        pool = spec.pool.removeprefix("pools/")
        return Work(spec=spec, inputs=job.inputs, reads=reads, plan=[line], tags=request.tags, pool=pool)

    def _unet(self, record: Record) -> dict[str, list[int]]:
        single = record.manifest.kind is Kind.SINGLE_FILE
        found: dict[str, list[int]] = {}
        for file in record.manifest.files:
            path = self._catalog.store.local_path(file.sha256)
            if (single or file.path.startswith("unet/")) and file.path.endswith(".safetensors") and path:
                found |= {name: entry["shape"] for name, entry in safetensors_header(path).items() if name != "__metadata__"}
        return {name: shape for name, shape in found.items() if not single or name.startswith(_UNET_OF_SINGLE_FILE)}


def _unpack(packed: bytes, message: trainer_pb2.TrainRequest) -> bool:
    return any_pb2.Any.FromString(packed).Unpack(message)
