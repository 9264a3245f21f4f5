"""A line of training flags as an order: the request as far as flags alone tell it, and what this machine has to do around it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from atelier.cli.flags import FIELDS, FOREIGN, PRIOR, default_of, fields_of, type_of
from atelier.errors import AtelierError, Violation, invalid
from atelier.trainer.spec import Method
from atelier.v1 import trainer_pb2


class When(StrEnum):
    """When forward and backward are compiled."""

    AUTO = "auto"
    NOW = "now"
    NEVER = "never"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What was asked for. `request` lacks the model, the pictures and the checkpoint, which are words still."""

    request: trainer_pb2.TrainRequest
    warnings: tuple[str, ...]
    model: str
    instance_data_dir: str
    class_data_dir: str
    output_dir: Path | None
    logging_dir: str
    resume: str
    revision: str
    allow_download: bool
    detach: bool


def order(method: Method, given: Mapping[str, Any]) -> Order:
    """Reads the flags. Raises INVALID_ARGUMENT naming every flag that is refused."""
    _refuse(given)
    warnings = _warnings(given)
    left_out: tuple[str, ...] = ()
    if not given["with_prior_preservation"]:
        left_out = tuple(name for name in PRIOR if given.get(name) is not None)
        if left_out:
            warnings.append(f"{', '.join('--' + name for name in left_out)}: ignored without --with_prior_preservation")
    # Not `in (None, False)`: --lr_warmup_steps=0 equals False, and means something.
    named = [name for name in fields_of(method) if given[name] is not None and given[name] is not False]
    fields = {name: given[name] for name in named if name not in left_out}
    request = trainer_pb2.TrainRequest(
        method=trainer_pb2.Method.Value(f"METHOD_{method}"),
        compile=trainer_pb2.TrainCompile.Value(f"TRAIN_COMPILE_{given['compile'].name}"),
        pool=given["pool"] or "",
        tags=given["tag"] or [],
        validate_only=given["validate_only"],
        **fields,
    )
    return Order(
        request=request,
        warnings=tuple(warnings),
        model=given["pretrained_model_name_or_path"],
        instance_data_dir=given["instance_data_dir"],
        class_data_dir="" if "class_data_dir" in left_out else given["class_data_dir"] or "",
        output_dir=given["output_dir"],
        logging_dir=given["logging_dir"],
        resume=given["resume_from_checkpoint"] or "",
        revision=given["revision"] or "",
        allow_download=given["allow_download"],
        detach=given["detach"],
    )


def _refuse(given: Mapping[str, Any]) -> None:
    violations = [
        Violation(f"--{name}", foreign.why)
        for name, foreign in FOREIGN.items()
        if foreign.refused and given.get(name) and given[name] not in foreign.harmless_values
    ]
    if violations:
        raise invalid(violations, reason="FLAG_REFUSED")


def _warnings(given: Mapping[str, Any]) -> list[str]:
    return [
        f"--{name}: {foreign.why}"
        for name, foreign in FOREIGN.items()
        if not foreign.refused and given.get(name) and given[name] not in foreign.harmless_values
    ]


_OUTSIDE: Mapping[str, tuple[Any, Any, str]] = {
    "pretrained_model_name_or_path": (str, inspect.Parameter.empty, "Folder, file, Hugging Face repository, artifact, or base."),
    "instance_data_dir": (str, inspect.Parameter.empty, "The subject's pictures: a folder, or a DATASET artifact."),
    "class_data_dir": (str | None, None, "Class pictures that are there already; missing ones are made and written there."),
    "output_dir": (Path | None, None, "Gets what the script would write; left out, the result is kept as an artifact only."),
    "logging_dir": (str, "logs", "Where in --output_dir the TensorBoard events go."),
    "resume_from_checkpoint": (str | None, None, "jobs/ID, jobs/ID/checkpoint-STEP; latest or checkpoint-STEP of the run of --output_dir."),
    "revision": (str | None, None, "Branch, tag or commit of a Hugging Face repository."),
    "allow_download": (bool, False, "Lets the server download a Hugging Face repository that is not in a cache."),
    "compile": (When, When.AUTO, "Compiles forward and backward: auto uses what is there, now compiles first."),
    "pool": (str | None, None, "Pool to train on."),
    "tag": (list[str] | None, None, "Tag to put on the result."),
    "validate_only": (bool, False, "Checks everything, prints the plan, and starts nothing."),
    "detach": (bool, False, "Starts the run and does not wait for it."),
}
"""Flags that are not plain fields of the request: type, default, meaning."""


def parameters(method: Method) -> list[inspect.Parameter]:
    """The command's parameters, for typer; every flag takes underscores and dashes alike (see `command.py`)."""
    made = [_parameter(name, kind, default, help=text, panel="Options") for name, (kind, default, text) in _OUTSIDE.items()]
    for name in fields_of(method):
        kind = type_of(name)
        shown = default_of(method, name)
        panel, text = FIELDS[name]
        typed, default = (bool, False) if kind is bool else (kind | None, None)
        made.append(_parameter(name, typed, default, help=f"{text} Default: {shown}" if shown else text, panel=panel))
    for name, foreign in FOREIGN.items():
        typed, default = (str | None, None) if foreign.value else (bool, False)
        made.append(_parameter(name, typed, default, help=foreign.why, panel="Flags of the scripts without effect here", hidden=True))
    return made


def _parameter(name: str, kind: Any, default: Any, *, help: str, panel: str, hidden: bool = False) -> inspect.Parameter:
    option = typer.Option(f"--{name}", help=help, rich_help_panel=panel, hidden=hidden, show_default=kind in (str, When))
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def not_resumable(folder: Path | None) -> AtelierError:
    """What is said when `latest` or `checkpoint-STEP` has no run to belong to."""
    sentence = f"{folder} holds no run to go on with; give jobs/ID" if folder else "give --output_dir of the run, or jobs/ID"
    return invalid([Violation("--resume_from_checkpoint", sentence)])
