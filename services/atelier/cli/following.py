"""Staying with a job to its end: what it says, what it made, and what Ctrl-C does."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import typer

from atelier.cli import INTERRUPTED
from atelier.cli.progress import JobDisplay, JsonDisplay, view
from atelier.cli.session import Session
from atelier.client.client import Client
from atelier.client.job_service import check, outputs
from atelier.client.outputs import fetch_class_pictures, fetch_file, fetch_training
from atelier.v1 import job_pb2


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Where on this machine a job's outputs go; `target` is for jobs whose first output is all that counts."""

    output_dir: Path | None = None
    class_data_dir: str = ""
    logging_dir: str = "logs"
    target: Path | None = None

    @property
    def flags(self) -> str:
        """The flags of `jobs watch` that deliver the same."""
        given = {"--output_dir": self.output_dir, "--class_data_dir": self.class_data_dir}
        given |= {"--logging_dir": self.logging_dir} if self.logging_dir != Delivery.logging_dir else {}
        return "".join(f" {flag} {shlex.quote(str(value))}" for flag, value in given.items() if value)


def follow(session: Session, client: Client, job: job_pb2.Job, delivery: Delivery) -> None:
    """Shows the job to its end, and fetches what it made. Raises why it failed."""
    try:
        ended = watch(session, client, job.name, samples=delivery.output_dir / "samples" if delivery.output_dir else None)
        check(ended)
        written = deliver(session, client, ended, delivery)
    except KeyboardInterrupt:
        explain(session, job.name, delivery)
        raise typer.Exit(INTERRUPTED) from None
    made = outputs(ended)
    lines = [f"{role:<16} {artifact}" for role, artifact in made.items()] + [f"{'written':<16} {path}" for path in written]
    session.show({"job": ended, "written": written}, "\n".join(lines))


def watch(session: Session, client: Client, name: str, *, samples: Path | None) -> job_pb2.Job:
    """Shows the job's events until it has ended; gives it as it is then."""
    job = job_pb2.Job()
    responses = client.jobs.watch(name, include_pictures=samples is not None)
    if session.json:
        printer = JsonDisplay(session.out, samples=samples)
        for response in responses:
            job = response.job if response.HasField("job") else job
            if response.HasField("event"):
                printer.event(response.event)
        return job
    with view(session.err) as shown:
        display = JobDisplay(shown, samples=samples)
        for response in responses:
            job = response.job if response.HasField("job") else job
            if response.HasField("event"):
                display.event(response.event)
    return job


def deliver(session: Session, client: Client, job: job_pb2.Job, delivery: Delivery) -> list[str]:
    """Fetches the outputs; gives where they were written."""
    written = []
    if delivery.target is not None and job.outputs:
        with session.transfers(f"writing {delivery.target}") as told:
            written.append(str(fetch_file(client, job.outputs[0].artifact, delivery.target, progress=told)))
    if delivery.output_dir is not None:
        with session.transfers(f"writing {delivery.output_dir}") as told:
            fetch_training(client, job, delivery.output_dir, logging_dir=delivery.logging_dir, progress=told)
        written.append(str(delivery.output_dir))
    if delivery.class_data_dir:
        added = fetch_class_pictures(client, job, Path(delivery.class_data_dir))
        written += [f"{delivery.class_data_dir} ({added} class pictures)"] if added else []
    return written


def explain(session: Session, name: str, delivery: Delivery) -> None:
    """Says what Ctrl-C has done and how to go on."""
    again = f"atelier{session.flags} jobs watch {name}{delivery.flags}"
    if session.local:
        session.note(f"{name} stops at a checkpoint (Ctrl-C again ends it at once). It goes on with: {again}")
    else:
        session.note(f"{name} goes on without you. Come back with: {again}\nCancel it with: atelier{session.flags} jobs cancel {name}")
