"""`atelier jobs`: what runs and what ran."""

from __future__ import annotations

from datetime import UTC
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from atelier.cli.following import Delivery, follow
from atelier.cli.progress import figures_of
from atelier.cli.session import session_of
from atelier.client.outputs import Note
from atelier.v1 import job_pb2

app = typer.Typer(help="What runs and what ran.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="The job, with or without `jobs/`.")]


class State(StrEnum):
    """Where a job stands."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


@app.command("list")
def list_jobs(
    context: typer.Context,
    state: Annotated[State | None, typer.Option("--state", help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 50,
) -> None:
    """Jobs, newest first."""
    session = session_of(context)
    wanted = job_pb2.JobState.Value(f"JOB_STATE_{state.name if state else 'UNSPECIFIED'}")
    with session.client() as client:
        found = list(islice(client.jobs.list(state=wanted), limit))
    if session.json:
        session.show({"jobs": found})
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("NAME", "WHAT", "STATE", "PROGRESS", "BEGUN"):
        table.add_column(column, overflow="fold")
    for job in found:
        table.add_row(job.name, what_of(job), state_of(job), progress_of(job), when(job))
    session.show_table(table)


@app.command("get")
def get(context: typer.Context, name: Id) -> None:
    """One job."""
    session = session_of(context)
    with session.client() as client:
        job = client.jobs.get(name)
    lines = [f"{job.name}  {what_of(job)}  {state_of(job)}  {progress_of(job)}".rstrip(), *job.plan]
    lines += [f"{output.role:<16} {output.artifact}" for output in job.outputs]
    lines += [job.error.message] if job.error.message else []
    session.show(job, "\n".join(lines))


@app.command("watch")
def watch(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="ID", help="The job; left out: the one of --output_dir.")] = None,
    output_dir: Annotated[Path | None, typer.Option("--output_dir", help="Gets what a training script would write.")] = None,
    class_data_dir: Annotated[str, typer.Option("--class_data_dir", help="Gets the class pictures; left out: as at the start.")] = "",
    logging_dir: Annotated[str, typer.Option("--logging_dir", help="Where in --output_dir the TensorBoard events go.")] = "logs",
) -> None:
    """Shows a job to its end, and fetches what it made."""
    session = session_of(context)
    note = Note.read(output_dir) if output_dir else None
    wanted = name or (note.job if note else "")
    if not wanted:
        raise typer.BadParameter("name the job, or the --output_dir of a run", param_hint="ID")
    if note is not None and not class_data_dir and note.job.endswith(wanted.removeprefix("jobs/")):
        class_data_dir = note.class_data_dir
    with session.client() as client:
        job = client.jobs.get(wanted)
        delivery = Delivery(output_dir=output_dir, class_data_dir=class_data_dir, logging_dir=logging_dir)
        follow(session, client, job, delivery)


@app.command("cancel")
def cancel(context: typer.Context, name: Id) -> None:
    """Asks a job to stop."""
    session = session_of(context)
    with session.client() as client:
        job = client.jobs.cancel(name)
    session.show(job, f"{job.name} is {state_of(job)}")


@app.command("delete")
def delete(context: typer.Context, name: Id) -> None:
    """Deletes a job that has ended, with its checkpoints; what it made stays."""
    session = session_of(context)
    with session.client() as client:
        client.jobs.delete(name)
    session.show({"name": name}, f"{name} is deleted; what it made stays")


def what_of(job: job_pb2.Job) -> str:
    """What the job does: Train, Convert, Merge, Compile, Promote."""
    return job.spec.TypeName().rpartition(".")[2].removesuffix("Request")


def state_of(job: job_pb2.Job) -> str:
    """Its state, as people say it."""
    return job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()


def progress_of(job: job_pb2.Job) -> str:
    """What it waits for, or its last progress while it runs."""
    if job.waits_for:
        return f"waits: {job.waits_for}"
    if job.state not in (job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_CANCELLING):
        return ""
    progress = job.progress
    steps = f" {progress.step}/{progress.total_steps}" if progress.total_steps else ""
    return f"{progress.phase}{steps}  {figures_of(progress)}".strip()


def when(job: job_pb2.Job) -> str:
    """When it was accepted, in this machine's time."""
    return job.create_time.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S") if job.HasField("create_time") else ""
