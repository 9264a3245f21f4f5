"""TrainRequest <-> TrainSpec. The message's fields have the spec's names, so that this is short."""

from __future__ import annotations

from typing import Any

from atelier.errors import Violation, invalid
from atelier.trainer.spec import Compile, Method, TrainSpec, complete, make, violations
from atelier.v1 import trainer_pb2

_NOT_SPEC = {"request_id", "validate_only", "method", "pool", "tags", "compile"} | {
    "pretrained_model_name_or_path", "instance_data_dir", "class_data_dir", "resume_from_checkpoint",
}  # fmt: skip


def to_spec(request: trainer_pb2.TrainRequest, *, drawn_seed: int = 0) -> tuple[TrainSpec, list[str]]:
    """The run that a request asks for, defaults filled in, and warnings. Raises INVALID_ARGUMENT naming every bad field."""
    if not request.method:
        raise invalid([Violation("method", f"must be set: {', '.join(Method)}")])
    method = Method(trainer_pb2.Method.Name(request.method).removeprefix("METHOD_"))
    given: dict[str, Any] = {f.name: value for f, value in request.ListFields() if f.name not in _NOT_SPEC}
    values, warnings = complete(method, {**given, "class_data_dir": request.class_data_dir}, drawn_seed=drawn_seed)
    values |= {"instance_prompt": request.instance_prompt, "class_prompt": request.class_prompt}
    del values["class_data_dir"]
    values["compile"] = _compile(request.compile)
    found = violations(method, values)
    found += [Violation(n, "must be set") for n in ("pretrained_model_name_or_path", "instance_data_dir") if not getattr(request, n)]
    if found:
        raise invalid(found)
    return make(method, values), warnings


def completed(request: trainer_pb2.TrainRequest, spec: TrainSpec) -> trainer_pb2.TrainRequest:
    """The request with the spec's values in every field that the method has."""
    full = trainer_pb2.TrainRequest()
    full.CopyFrom(request)
    full.compile = trainer_pb2.TrainCompile.Value(f"TRAIN_COMPILE_{spec.compile}")
    full.ClearField("request_id")
    full.ClearField("validate_only")
    for field in full.DESCRIPTOR.fields:
        value = getattr(spec, field.name, None)
        if (
            field.name not in _NOT_SPEC
            and value is not None
            and not (field.name in ("rank", "lora_dropout", "lora_layers") and not spec.rank)
        ):
            setattr(full, field.name, value)
    return full


def _compile(value: trainer_pb2.TrainCompile.ValueType) -> Compile:
    return Compile(trainer_pb2.TrainCompile.Name(value).removeprefix("TRAIN_COMPILE_")) if value else Compile.AUTO
