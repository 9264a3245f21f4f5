"""Jobs, from the client's side."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc

from atelier.client.calls import Calls, Repetition, cut_off
from atelier.errors import AtelierError, Status
from atelier.rpc.status import from_proto
from atelier.v1 import job_pb2, job_pb2_grpc

ENDED = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)


class JobService:
    """Shows jobs, waits for them, stops them. A name may be given with or without `jobs/`."""

    def __init__(self, channel: grpc.Channel, calls: Calls) -> None:
        self._stub = job_pb2_grpc.JobsStub(channel)
        self._calls = calls

    def get(self, name: str) -> job_pb2.Job:
        """One job. Raises NOT_FOUND."""
        return self._calls.unary(self._stub.GetJob, job_pb2.GetJobRequest(name=full_name(name)), idempotent=True)

    def list(self, *, state: job_pb2.JobState.ValueType = job_pb2.JOB_STATE_UNSPECIFIED) -> Iterator[job_pb2.Job]:
        """All jobs, newest first, page by page."""
        token = ""
        while True:
            request = job_pb2.ListJobsRequest(state=state, page_token=token)
            page = self._calls.unary(self._stub.ListJobs, request, idempotent=True)
            yield from page.jobs
            token = page.next_page_token
            if not token:
                return

    def watch(self, name: str, *, after_sequence: int = 0, include_pictures: bool = False) -> Iterator[job_pb2.WatchJobResponse]:
        """Events until the job has ended; the last response holds the job. Goes on by itself after the server was away."""
        sequence = after_sequence
        repetition = Repetition(calls=self._calls, idempotent=True, most=None if after_sequence else 3)
        while True:
            request = job_pb2.WatchJobRequest(name=full_name(name), after_sequence=sequence, include_pictures=include_pictures)
            stream = self._stub.WatchJob(request)
            try:
                for response in stream:
                    repetition.went_on()
                    repetition.most = None  # it answered once: its address is right, so it is waited for
                    sequence = response.event.sequence or sequence
                    yield response
                    if response.HasField("job") and response.job.state in ENDED:
                        return
                raise cut_off()
            except grpc.RpcError as error:
                repetition.wait_or_raise(self._calls.error(error))
            except AtelierError as error:
                repetition.wait_or_raise(error)
            finally:
                stream.cancel()

    def wait(self, name: str, *, each: Callable[[job_pb2.WatchJobResponse], None] | None = None) -> job_pb2.Job:
        """The job when it has ended. Raises why it failed, or CANCELLED."""
        job = job_pb2.Job()
        for response in self.watch(name):
            if each is not None:
                each(response)
            job = response.job if response.HasField("job") else job
        check(job)
        return job

    def cancel(self, name: str) -> job_pb2.Job:
        """Asks a job to stop; one that has ended is left as it is."""
        return self._calls.unary(self._stub.CancelJob, job_pb2.CancelJobRequest(name=full_name(name)), idempotent=True)

    def delete(self, name: str) -> None:
        """Deletes a job that has ended. Raises FAILED_PRECONDITION for one that has not."""
        self._calls.unary(self._stub.DeleteJob, job_pb2.DeleteJobRequest(name=full_name(name)), idempotent=False)


def full_name(name: str) -> str:
    """`jobs/{id}`."""
    return name if name.startswith("jobs/") else f"jobs/{name}"


def check(job: job_pb2.Job) -> None:
    """Raises why a job failed, or CANCELLED."""
    if job.state == job_pb2.JOB_STATE_FAILED:
        raise from_proto(job.error)
    if job.state == job_pb2.JOB_STATE_CANCELLED:
        raise AtelierError(Status.CANCELLED, "CANCELLED", f"{job.name} was cancelled", metadata={"job": job.name})


def outputs(job: job_pb2.Job) -> dict[str, str]:
    """What a job made: role -> `artifacts/{digest}`."""
    return {output.role: output.artifact for output in job.outputs}
