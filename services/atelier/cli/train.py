"""`atelier train`: the diffusers scripts' command lines, run as jobs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from atelier.artifacts.manifest import Kind
from atelier.cli.following import Delivery, follow
from atelier.cli.orders import Order, not_resumable, order, parameters
from atelier.cli.places import check_writable
from atelier.cli.session import Session, session_of
from atelier.client.client import Client
from atelier.client.outputs import Note
from atelier.client.sources import Sources
from atelier.trainer.spec import Method
from atelier.v1 import trainer_pb2

app = typer.Typer(help="Fine-tunes a model.", no_args_is_help=True)


def _command(method: Method, *, summary: str) -> None:
    """Adds a method's command, with its flags from the table."""

    def train(context: typer.Context, **given: Any) -> None:
        run(session_of(context), order(method, given))

    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    train.__signature__ = inspect.Signature([context, *parameters(method)])  # type: ignore[attr-defined]
    train.__annotations__ = {}
    app.command(method.lower().replace("_", "-"), help=summary)(train)


_command(Method.DREAMBOOTH, summary="All UNet weights learn a subject. The flags are those of diffusers' train_dreambooth.py.")
_command(Method.DREAMBOOTH_LORA, summary="A LoRA learns a subject. The flags are those of diffusers' train_dreambooth_lora.py.")


@app.command("promote")
def promote(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="jobs/ID of the run, or its RUN artifact.")],
    step: Annotated[int, typer.Option("--step", help="The checkpoint's step.")],
    output_dir: Annotated[Path | None, typer.Option("--output_dir", help="Gets the result.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Tag to put on the result.")] = None,
) -> None:
    """Makes an earlier checkpoint of a run its result."""
    session = session_of(context)
    check_writable(output_dir, field="--output_dir")
    with session.client() as client:
        job = client.promote(trainer_pb2.PromoteRequest(run=run, step=step, tags=tag or []))
        follow(session, client, job, Delivery(output_dir=output_dir))


def run(session: Session, asked: Order) -> None:
    """Brings in what the run needs, starts it, and stays with it to its end."""
    check_writable(asked.output_dir, field="--output_dir")
    for warning in asked.warnings:
        session.warn(warning)
    with session.client() as client:
        request, class_folder = complete(session, client, asked)
        job = client.train(request)
        if request.validate_only:
            session.show(job, "\n".join(job.plan))
            return
        if asked.output_dir is not None:
            Note(job=job.name, class_data_dir=class_folder).write(asked.output_dir)
        if asked.detach and not session.local:
            session.show(job, f"{job.name} was started; `atelier jobs watch {job.name}` shows it")
            return
        for line in job.plan:
            session.note(line)
        follow(session, client, job, Delivery(output_dir=asked.output_dir, class_data_dir=class_folder, logging_dir=asked.logging_dir))


def complete(session: Session, client: Client, asked: Order) -> tuple[trainer_pb2.TrainRequest, str]:
    """The request with artifacts in the place of words, and the folder on this machine that class pictures are written to, if any."""
    request = trainer_pb2.TrainRequest()
    request.CopyFrom(asked.request)
    sources = session.sources(client)
    request.pretrained_model_name_or_path = sources.find(
        asked.model, field="--pretrained_model_name_or_path", revision=asked.revision, allow_download=asked.allow_download
    ).name
    request.instance_data_dir = sources.find(asked.instance_data_dir, field="--instance_data_dir", kind=Kind.DATASET).name
    class_folder = ""
    if asked.class_data_dir:
        request.class_data_dir, class_folder = class_pictures(sources, asked.class_data_dir)
    request.resume_from_checkpoint = checkpoint(session, asked)
    return request, class_folder


def class_pictures(sources: Sources, word: str) -> tuple[str, str]:
    """The artifact with the class pictures that are there already, and the folder that missing ones are written to; either may be empty."""
    folder = Path(word).expanduser()
    if folder.is_dir() and any(path.is_file() for path in folder.rglob("*")):
        return sources.upload(folder, kind=Kind.DATASET).name, str(folder.absolute())
    if not folder.is_dir() and (artifact := sources.known(word)) is not None:
        return artifact.name, ""
    return "", str(folder.absolute())


def checkpoint(session: Session, asked: Order) -> str:
    """The checkpoint to go on from, as the server knows it; empty for a new run."""
    word = asked.resume
    if not word or word.startswith("jobs/"):
        return word
    note = Note.read(asked.output_dir) if asked.output_dir else None
    if word == "latest":
        if note is None:
            session.warn(f"--resume_from_checkpoint=latest: {asked.output_dir} holds no run, so a new one starts")
        return note.job if note else ""
    if note is None or not Path(word).name.startswith("checkpoint-"):
        raise not_resumable(asked.output_dir)
    return f"{note.job}/{Path(word).name}"
