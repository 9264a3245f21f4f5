"""`atelier generate`: pictures from a deployment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from atelier.cli.places import check_writable
from atelier.cli.session import Session, session_of
from atelier.client.deployment_service import full_name
from atelier.v1 import image_pb2

PREVIEW_STEPS = 3
"""Steps between previews."""


class Sampler(StrEnum):
    """How the noise is taken away."""

    EULER = "euler"
    EULER_A = "euler-a"
    DDIM = "ddim"
    DPMPP_2M = "dpmpp-2m"
    UNIPC = "unipc"


def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What is to be seen.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture file; several are numbered.")] = Path("picture.png"),
    deployment: Annotated[str, typer.Option("--deployment", help="Left out: the only one.")] = "",
    negative_prompt: Annotated[str, typer.Option("--negative-prompt", help="What is not to be seen.")] = "",
    steps: Annotated[int, typer.Option("--steps", help="Denoising steps; 0: 20.", show_default=False)] = 0,
    guidance_scale: Annotated[float | None, typer.Option("--guidance-scale", help="Left out: 5.")] = None,
    sampler: Annotated[Sampler, typer.Option("--sampler", help="How the noise is taken away.")] = Sampler.EULER,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Picture i uses seed + i; drawn when left out.")] = None,
    count: Annotated[int, typer.Option("--count", help="How many pictures.")] = 1,
    width: Annotated[int, typer.Option("--width", help="In pixels; 0: the model's own.", show_default=False)] = 0,
    height: Annotated[int, typer.Option("--height", help="In pixels; 0: the model's own.", show_default=False)] = 0,
    preview: Annotated[bool, typer.Option("--preview", help="Writes previews beside the picture while it is made.")] = False,
) -> None:
    """Makes pictures."""
    session = session_of(context)
    check_writable(path_of(output, 0, count), field="-o")
    request = image_pb2.GenerateRequest(
        deployment=full_name(deployment) if deployment else "",
        prompt=prompt,
        negative_prompt=negative_prompt,
        width=width,
        height=height,
        steps=steps,
        guidance_scale=guidance_scale,
        sampler=image_pb2.Sampler.Value(f"SAMPLER_{sampler.name}"),
        seed=seed,
        count=count,
        preview_steps=PREVIEW_STEPS if preview else 0,
    )
    with session.client(serving=True) as client:
        _draw(session, client.generate(request), output, count=count)


def _draw(session: Session, parts: Iterator[image_pb2.GenerateProgress | image_pb2.GeneratedImage], output: Path, *, count: int) -> None:
    begin = time.monotonic()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    quiet = session.json or not session.err.is_terminal
    previews: set[Path] = set()
    try:
        with Progress(*columns, console=session.err, transient=True, disable=quiet) as bars:
            task = bars.add_task("generating", total=None)
            for part in parts:
                if isinstance(part, image_pb2.GenerateProgress):
                    bars.update(task, completed=part.step, total=part.total_steps)
                    previews |= {_write(png, _preview(path_of(output, i, count))) for i, png in enumerate(part.previews)}
                else:
                    _show(session, part, _write(part.png, path_of(output, part.index, count)), seconds=time.monotonic() - begin)
    finally:
        for path in previews:
            path.unlink(missing_ok=True)


def path_of(output: Path, index: int, count: int) -> Path:
    """Where picture `index` goes: `picture.png`, or `picture-0.png` and so on when there are several."""
    named = output if output.suffix else output.with_suffix(".png")
    return named if count <= 1 else named.with_stem(f"{named.stem}-{index}")


def _preview(path: Path) -> Path:
    return path.with_stem(f"{path.stem}.preview")


def _write(png: bytes, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png)
    return path


def _show(session: Session, image: image_pb2.GeneratedImage, path: Path, *, seconds: float) -> None:
    facts = {
        "path": str(path), "index": image.index, "seed": image.seed, "width": image.width, "height": image.height,
        "model": image.model, "engine": image.engine, "seconds": round(seconds, 3),
    }  # fmt: skip
    engine = image.engine.removeprefix("artifacts/")
    short = engine[:8] + "+bound" * engine.endswith("+bound") if len(engine) > 20 else engine
    session.show(facts, f"{path}  {image.width}x{image.height}  seed {image.seed}  {short}  {seconds:.2f} s")
