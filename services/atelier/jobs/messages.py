"""Jobs as protobuf messages, for the servicers."""

from __future__ import annotations

from google.protobuf import any_pb2
from google.rpc import status_pb2

from atelier.jobs.events import state_to_enum
from atelier.jobs.job import Event, Job
from atelier.v1 import job_pb2


def to_message(job: Job) -> job_pb2.Job:
    """The job as the API shows it."""
    message = job_pb2.Job(
        name=job.name,
        spec=any_pb2.Any.FromString(job.spec),
        state=state_to_enum(job.state),
        attempts=job.attempt,
        outputs=[job_pb2.JobOutput(role=o.role, artifact=f"artifacts/{o.digest}") for o in job.outputs],
        last_sequence=job.last_sequence,
        plan=job.plan,
        waits_for=job.waits_for,
    )
    if job.progress:
        message.progress.ParseFromString(job.progress)
    if job.error:
        message.error.CopyFrom(status_pb2.Status.FromString(job.error))
    message.create_time.FromDatetime(job.create_time)
    if job.start_time:
        message.start_time.FromDatetime(job.start_time)
    if job.end_time:
        message.end_time.FromDatetime(job.end_time)
    return message


def event_to_message(event: Event) -> job_pb2.JobEvent:
    """The event as the API shows it."""
    message = job_pb2.JobEvent.FromString(event.payload)
    message.sequence = event.sequence
    message.time.FromDatetime(event.time)
    return message
