"""`atelier convert` and `atelier merge`: between the formats of the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from atelier.artifacts.manifest import Kind
from atelier.cli.following import Delivery, follow
from atelier.cli.places import check_writable
from atelier.cli.session import Session, session_of
from atelier.client.artifact_service import kind_of
from atelier.client.client import Client
from atelier.client.sources import Sources
from atelier.errors import invalid_field
from atelier.v1 import artifact_pb2, converter_pb2, job_pb2


class To(StrEnum):
    """What something can become."""

    WEBUI = "webui"
    DIFFUSERS = "diffusers"
    SINGLE_FILE = "single-file"
    PEFT = "peft"


class Precision(StrEnum):
    """Precision of the tensors that are written."""

    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"


_LORAS = (Kind.LORA, Kind.LEGACY)
_FORMATS: Mapping[tuple[To, bool], converter_pb2.Format.ValueType] = {
    (To.WEBUI, True): converter_pb2.FORMAT_LORA_WEBUI,
    (To.WEBUI, False): converter_pb2.FORMAT_SINGLE_FILE,
    (To.DIFFUSERS, True): converter_pb2.FORMAT_LORA_DIFFUSERS,
    (To.DIFFUSERS, False): converter_pb2.FORMAT_DIFFUSERS,
    (To.SINGLE_FILE, False): converter_pb2.FORMAT_SINGLE_FILE,
    (To.PEFT, True): converter_pb2.FORMAT_LORA_PEFT,
}
"""What is asked for, and whether the source is a LoRA -> the format."""

Output = Annotated[Path | None, typer.Option("--output", "-o", help="File (.safetensors) or folder; left out: an artifact only.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="Tag to put on the result.")]
Written = Annotated[Precision | None, typer.Option("--precision", help="Precision of the tensors that are written; left out: as they are.")]
ValidateOnly = Annotated[bool, typer.Option("--validate-only", help="Checks everything and starts nothing.")]


def convert(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Model or LoRA: path, artifact or tag.")],
    to: Annotated[To, typer.Option("--to", help="webui: a checkpoint or LoRA for WebUI; diffusers, single-file, peft.")],
    output: Output = None,
    config: Annotated[str | None, typer.Option("--config", help="Model whose configs and tokenizer a single file lacks.")] = None,
    precision: Written = None,
    tag: Tags = None,
    validate_only: ValidateOnly = False,
) -> None:
    """Converts a model or LoRA; every tensor is accounted for, or the conversion fails."""
    session = session_of(context)
    check_writable(output, field="-o")
    with session.client() as client:
        sources = session.sources(client)
        artifact = sources.find(source, field="SOURCE")
        request = converter_pb2.ConvertRequest(
            source=artifact.name,
            to=format_of(to, artifact),
            config=sources.find(config, field="--config").name if config else "",
            precision=_precision(precision),
            file_name=_file_name(output),
            tags=tag or [],
            validate_only=validate_only,
        )
        _run(session, client, client.convert(request), output, validate_only=validate_only)


def merge(
    context: typer.Context,
    base: Annotated[str, typer.Argument(metavar="BASE", help="Model: path, artifact or tag.")],
    loras: Annotated[list[str], typer.Argument(metavar="LORA[:RATIO]...", help="LoRAs, each with how much of it; 1 is as trained.")],
    output: Output = None,
    precision: Written = None,
    tag: Tags = None,
    validate_only: ValidateOnly = False,
) -> None:
    """Merges LoRAs into a model; the result has the base's format."""
    session = session_of(context)
    check_writable(output, field="-o")
    with session.client() as client:
        sources = session.sources(client)
        request = converter_pb2.MergeRequest(
            base=sources.find(base, field="BASE").name,
            loras=[_lora(sources, word) for word in loras],
            precision=_precision(precision),
            file_name=_file_name(output),
            tags=tag or [],
            validate_only=validate_only,
        )
        _run(session, client, client.merge(request), output, validate_only=validate_only)


def format_of(to: To, artifact: artifact_pb2.Artifact) -> converter_pb2.Format.ValueType:
    """The format that a word means for an artifact."""
    kind = kind_of(artifact)
    wanted = _FORMATS.get((to, kind in _LORAS))
    if wanted is None:
        choices = ", ".join(word for word, lora in _FORMATS if lora == (kind in _LORAS))
        raise invalid_field("--to", f"a {kind} cannot become {to}; choose {choices}")
    return wanted


def lora_ratio(word: str) -> tuple[str, float]:
    """`LORA:RATIO` as its parts; without a ratio it is 1. A tag's version that is a number needs the ratio after it: `az:2:1`."""
    name, colon, ratio = word.rpartition(":")
    if not colon or Path(word).exists():
        return word, 1.0
    try:
        number = float(ratio)
    except ValueError:
        return word, 1.0
    if not math.isfinite(number):
        raise invalid_field("LORA:RATIO", f"the ratio in {word!r} must be a finite number")
    return name, number


def _lora(sources: Sources, word: str) -> converter_pb2.LoraRatio:
    name, ratio = lora_ratio(word)
    return converter_pb2.LoraRatio(lora=sources.find(name, field="LORA").name, ratio=ratio)


def _precision(precision: Precision | None) -> converter_pb2.SavePrecision.ValueType:
    return converter_pb2.SavePrecision.Value(f"SAVE_PRECISION_{precision.name if precision else 'UNSPECIFIED'}")


def _file_name(output: Path | None) -> str:
    return output.stem if output is not None and output.suffix == ".safetensors" else ""


def _run(session: Session, client: Client, job: job_pb2.Job, output: Path | None, *, validate_only: bool) -> None:
    if validate_only:
        session.show(job, "\n".join(job.plan))
    else:
        follow(session, client, job, Delivery(target=output))
