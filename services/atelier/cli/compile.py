"""`atelier compile`: a model's UNet ahead of time."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from atelier.cli.following import Delivery, follow
from atelier.cli.places import check_writable
from atelier.cli.session import session_of
from atelier.errors import invalid_field
from atelier.v1 import compiler_pb2


class Backend(StrEnum):
    """What compiles and runs the graph."""

    OPENVINO = "openvino"
    INDUCTOR = "inductor"
    TENSORRT = "tensorrt"


class Precision(StrEnum):
    """Precision of the engine."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class What(StrEnum):
    """What is written."""

    ENGINE = "engine"
    TORCHSCRIPT = "torchscript"


def compile(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model: path, artifact or tag.")],
    backend: Annotated[Backend | None, typer.Option("--backend", help="Left out: openvino on a CPU, inductor on CUDA.")] = None,
    precision: Annotated[Precision | None, typer.Option("--precision", help="Left out: the fastest that the device has.")] = None,
    what: Annotated[What, typer.Option("--output", help="An engine for this installation, or TorchScript for elsewhere.")] = What.ENGINE,
    width: Annotated[int, typer.Option("--width", help="Picture width in pixels; 0: the model's own.", show_default=False)] = 0,
    height: Annotated[int, typer.Option("--height", help="Picture height in pixels; 0: the model's own.", show_default=False)] = 0,
    batch_sizes: Annotated[str, typer.Option("--batch-sizes", help="UNet batches, as in 2,4,8; guidance doubles a picture.")] = "",
    pool: Annotated[str, typer.Option("--pool", help="Pool on whose device it shall run.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Compiles anew although there is an engine.")] = False,
    folder: Annotated[Path | None, typer.Option("-o", metavar="DIR", help="Folder on this machine for the result.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Tag to put on the result.")] = None,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Checks everything and starts nothing.")] = False,
) -> None:
    """Compiles a model's UNet; what does not agree with eager PyTorch is not published."""
    session = session_of(context)
    check_writable(folder, field="-o")
    with session.client() as client:
        request = compiler_pb2.CompileRequest(
            model=session.sources(client).find(model, field="MODEL").name,
            pool=pool,
            backend=compiler_pb2.Backend.Value(f"BACKEND_{backend.name if backend else 'UNSPECIFIED'}"),
            precision=compiler_pb2.EnginePrecision.Value(f"ENGINE_PRECISION_{precision.name if precision else 'UNSPECIFIED'}"),
            profile=compiler_pb2.ShapeProfile(width=width, height=height, batch_sizes=numbers(batch_sizes)),
            output=compiler_pb2.CompileOutput.Value(f"COMPILE_OUTPUT_{what.name}"),
            force=force,
            tags=tag or [],
            validate_only=validate_only,
        )
        job = client.compile(request)
        if validate_only:
            session.show(job, "\n".join(job.plan))
        else:
            follow(session, client, job, Delivery(target=folder))
            if session.local and folder and what == What.ENGINE:
                # Nobody else has this key, and a container's data folder goes with it.
                session.note(
                    f"This engine is for local use: it is signed with the key of {session.data}, and no other installation loads it."
                )


def numbers(text: str) -> list[int]:
    """`2,4,8` as numbers."""
    try:
        return [int(part) for part in text.replace(" ", ",").split(",") if part]
    except ValueError:
        raise invalid_field("--batch-sizes", f"give numbers with commas, as in 2,4,8, got {text!r}") from None
