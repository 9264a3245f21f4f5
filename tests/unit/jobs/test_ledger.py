"""The ledger of jobs: accepted once, fenced, cancelled, watched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from atelier.artifacts.catalog import ArtifactRow
from atelier.artifacts.manifest import File
from atelier.artifacts.store import Store
from atelier.client import Client
from atelier.errors import AtelierError, Status
from atelier.jobs.events import log_event, state_event
from atelier.jobs.job import Checkpoint, NewJob, Output, State
from atelier.jobs.ledger import JobLedger
from atelier.jobs.messages import event_to_message
from atelier.jobs.servicer import JobsServicer, picture_key
from atelier.jobs.submission import Submission, Work
from atelier.ledger import ArtifactUse, Database, now
from atelier.rpc import auth, server
from atelier.v1 import job_pb2, job_pb2_grpc, trainer_pb2


@pytest.fixture
def ledger(database: Database) -> JobLedger:
    return JobLedger(database)


def new(request_id: str = "", *, body: str = "a" * 64, inputs: tuple[str, ...] = ()) -> NewJob:
    return NewJob(service="trainer", method="Train", request_id=request_id, body_sha256=body, spec=b"", inputs=inputs)


def refused(call: Callable[[], Any]) -> AtelierError:
    with pytest.raises(AtelierError) as caught:
        call()
    return caught.value


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step=step, prefix=f"checkpoints/a/1-{step:08d}", files=(File(path="weights/x", size=1, sha256="0" * 64),))


def kinds(ledger: JobLedger, name: str) -> list[str]:
    events, _ = ledger.events(name, after_sequence=0)
    return [str(event_to_message(event).WhichOneof("event")) for event in events]


def test_an_attempt_that_was_superseded_can_write_nothing(ledger: JobLedger) -> None:
    name = ledger.submit(new()).name
    old = ledger.claim(name).attempt
    current = ledger.claim(name).attempt
    before = ledger.get(name)
    for call in (
        lambda: ledger.heartbeat(name, old),
        lambda: ledger.append(name, old, [log_event("late")], b"progress"),
        lambda: ledger.checkpoint(name, old, checkpoint(5), keep_full=2, keep_weights=2),
        lambda: ledger.check(name, old),
        lambda: ledger.complete(name, old, state=State.SUCCEEDED, outputs=[Output(role="lora", digest="1" * 64)]),
    ):
        error = refused(call)
        assert (error.status, error.reason) == (Status.ABORTED, "ATTEMPT_SUPERSEDED")
    assert ledger.get(name) == before
    assert ledger.checkpoints(name) == []
    assert not ledger.heartbeat(name, current)
    assert ledger.complete(name, current, state=State.SUCCEEDED).state is State.SUCCEEDED


def test_a_worker_whose_job_was_given_away_is_fenced_before_the_next_one_claims(ledger: JobLedger) -> None:
    name = ledger.submit(new()).name
    attempt = ledger.claim(name).attempt
    assert ledger.requeue(name, "lost", counts=True, budget=3).state is State.PENDING
    assert refused(lambda: ledger.append(name, attempt, [log_event("late")])).status is Status.ABORTED


def test_an_attempt_ends_its_job_once(ledger: JobLedger) -> None:
    name = ledger.submit(new()).name
    attempt = ledger.claim(name).attempt
    ledger.complete(name, attempt, state=State.SUCCEEDED)
    assert refused(lambda: ledger.complete(name, attempt, state=State.FAILED)).reason == "ATTEMPT_SUPERSEDED"
    assert refused(lambda: ledger.claim(name)).reason == "JOB_NOT_CLAIMABLE"
    assert ledger.get(name).state is State.SUCCEEDED


def test_fifty_submits_of_one_request_at_once_are_one_job(ledger: JobLedger) -> None:
    with ThreadPoolExecutor(50) as pool:
        jobs = list(pool.map(lambda _: ledger.submit(new("once")), range(50)))
    assert len({job.id for job in jobs}) == 1
    assert [job.name for job in ledger.unended(["trainer"])] == [jobs[0].name]
    assert kinds(ledger, jobs[0].name) == ["state"]


def test_a_request_id_with_another_body_is_refused_and_leaves_nothing(ledger: JobLedger) -> None:
    first = ledger.submit(new("once"))
    error = refused(lambda: ledger.submit(new("once", body="b" * 64)))
    assert (error.status, error.reason) == (Status.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert [violation.field for violation in error.violations] == ["request_id"]
    assert [job.id for job in ledger.unended(["trainer"])] == [first.id]


def test_without_a_request_id_every_submit_is_a_job(ledger: JobLedger) -> None:
    assert ledger.submit(new()).id != ledger.submit(new()).id


def test_a_waiting_job_is_cancelled_at_once_and_lets_go_of_its_inputs(ledger: JobLedger, database: Database) -> None:
    with database.transaction() as session:
        session.add(ArtifactRow(digest="d" * 64, kind="MODEL", key="", job="", signature=b"", create_time=now()))
    name = ledger.submit(new(inputs=("d" * 64,))).name
    job = ledger.cancel(name)
    assert job.state is State.CANCELLED and job.end_time is not None
    with database.transaction() as session:
        assert session.query(ArtifactUse).count() == 0
    assert refused(lambda: ledger.claim(name)).reason == "JOB_NOT_CLAIMABLE"
    assert ledger.cancel(name) == job


def test_a_running_job_that_is_cancelled_tells_its_worker(ledger: JobLedger) -> None:
    name = ledger.submit(new()).name
    attempt = ledger.claim(name).attempt
    assert ledger.cancel(name).state is State.CANCELLING
    assert ledger.heartbeat(name, attempt)
    assert ledger.append(name, attempt, [])
    assert ledger.requeue(name, "killed", counts=True, budget=3).state is State.CANCELLED


def test_a_checkpoint_gives_a_job_its_budget_of_failures_back(ledger: JobLedger) -> None:
    name = ledger.submit(new()).name
    for _ in range(2):
        ledger.claim(name)
        ledger.requeue(name, "killed", counts=True, budget=3)
    ledger.checkpoint(name, ledger.claim(name).attempt, checkpoint(5), keep_full=2, keep_weights=2)
    assert ledger.requeue(name, "killed", counts=True, budget=3).state is State.PENDING


async def test_watch_goes_on_after_a_sequence_and_ends_with_the_job(ledger: JobLedger) -> None:
    name = ledger.submit(new()).name
    attempt = ledger.claim(name).attempt
    ledger.append(name, attempt, [log_event(f"line {index}") for index in range(3)])

    async with jobs_service(ledger) as port:
        seen = ledger.get(name).last_sequence - 1

        def watch() -> list[job_pb2.JobEvent]:
            with Client(f"127.0.0.1:{port}") as client:
                return [response.event for response in client.jobs.watch(name, after_sequence=seen) if response.HasField("event")]

        watching = asyncio.create_task(asyncio.to_thread(watch))
        await asyncio.sleep(0.4)
        ledger.append(name, attempt, [log_event("the last")])
        ledger.complete(name, attempt, state=State.SUCCEEDED)
        found = await asyncio.wait_for(watching, 10)
    assert [event.sequence for event in found] == list(range(seen + 1, seen + 4))
    assert [event.log.message for event in found[:2]] == ["line 2", "the last"]
    assert found[-1].state == job_pb2.JOB_STATE_SUCCEEDED


def jobs_service(ledger: JobLedger, store: Store | None = None) -> Any:
    servicer = JobsServicer(ledger=ledger, store=store or Store.open("memory://"))
    descriptor = job_pb2.DESCRIPTOR.services_by_name["Jobs"]
    service = server.Service(descriptor=descriptor, add=job_pb2_grpc.add_JobsServicer_to_server, servicer=servicer)

    class Port:
        async def __aenter__(self) -> int:
            self.serving = server.serving("127.0.0.1:0", [service], authorize=auth.allow_all, grace_seconds=1)
            return (await self.serving.__aenter__()).port

        async def __aexit__(self, *error: Any) -> None:
            await self.serving.__aexit__(*error)

    return Port()


async def test_a_deleted_job_leaves_no_file_of_its_attempts(ledger: JobLedger, tmp_path: Path) -> None:
    store = Store.open(f"file://{tmp_path / 'store'}")
    name = ledger.submit(new()).name
    identifier = name.removeprefix("jobs/")
    attempt = ledger.claim(name).attempt
    store.put_object(f"checkpoints/{identifier}/1-00000005/weights/x", b"1")
    store.put_object(f"checkpoints/{identifier}/1-00000009/weights/x", b"1")  # its attempt died before the commit
    store.put_object(picture_key(name, 5, 0), b"png")
    store.put_object("checkpoints/another/1-00000005/weights/x", b"1")
    ledger.checkpoint(name, attempt, checkpoint(5), keep_full=2, keep_weights=2)
    async with jobs_service(ledger, store) as port:

        def delete() -> AtelierError:
            with Client(f"127.0.0.1:{port}") as client:
                early = refused(lambda: client.jobs.delete(name))
                ledger.complete(name, attempt, state=State.SUCCEEDED)
                client.jobs.delete(name)
                return early

        assert (await asyncio.to_thread(delete)).reason == "JOB_NOT_ENDED"
    left = [path.relative_to(tmp_path / "store").parts[:2] for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert left == [("checkpoints", "another")]
    assert refused(lambda: ledger.get(name)).status is Status.NOT_FOUND


def test_a_submission_keeps_the_request_as_it_was_accepted(ledger: JobLedger) -> None:
    woken: list[bool] = []
    submission = Submission(ledger=ledger, service="trainer", wake=lambda: woken.append(True))
    request = trainer_pb2.TrainRequest(request_id="x" * 65)
    error = refused(lambda: submission.submit("Train", request, request.request_id, Work(spec=request)))
    assert [violation.field for violation in error.violations] == ["request_id"]
    job = submission.submit("Train", request, "x", Work(spec=trainer_pb2.TrainRequest(max_train_steps=5), plan=["5 steps"]))
    spec = trainer_pb2.TrainRequest()
    assert job.spec.Unpack(spec) and spec.max_train_steps == 5
    assert (list(job.plan), job.state, woken) == (["5 steps"], job_pb2.JOB_STATE_PENDING, [True])


def test_events_are_numbered_without_gaps_and_pages_do_not_overlap(ledger: JobLedger) -> None:
    names = [ledger.submit(new()).name for _ in range(5)]
    attempt = ledger.claim(names[0]).attempt
    ledger.append(names[0], attempt, [log_event(str(index)) for index in range(700)])
    first, job = ledger.events(names[0], after_sequence=0)
    second, _ = ledger.events(names[0], after_sequence=first[-1].sequence)
    assert [event.sequence for event in (*first, *second)] == list(range(1, job.last_sequence + 1))
    assert first[0].payload == state_event(State.PENDING)
    page, token = ledger.page(state=None, page_size=3, page_token="")
    rest, end = ledger.page(state=None, page_size=3, page_token=token)
    assert {job.name for job in (*page, *rest)} == set(names) and end == ""
    assert refused(lambda: ledger.page(state=None, page_size=3, page_token="x")).status is Status.INVALID_ARGUMENT
