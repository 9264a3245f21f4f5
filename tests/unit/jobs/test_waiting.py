"""What a job's worker waits for, and what is seen of it, as its launcher tells the ledger."""

from __future__ import annotations

import pytest

from atelier.jobs.job import NewJob, State
from atelier.jobs.ledger import JobLedger
from atelier.jobs.messages import event_to_message, to_message
from atelier.jobs.submission import Submission, Work
from atelier.ledger import Database
from atelier.v1 import job_pb2, trainer_pb2

SENTENCE = "0/3 nodes are available: 2 Insufficient nvidia.com/gpu."


@pytest.fixture
def ledger(database: Database) -> JobLedger:
    return JobLedger(database)


@pytest.fixture
def name(ledger: JobLedger) -> str:
    return ledger.submit(NewJob(service="trainer", method="Train", request_id="", body_sha256="a" * 64, spec=b"")).name


def lines(ledger: JobLedger, name: str) -> list[tuple[int, str]]:
    events = [event_to_message(event) for event in ledger.events(name, after_sequence=0)[0]]
    return [(event.log.level, event.log.message) for event in events if event.WhichOneof("event") == "log"]


def test_a_sentence_is_an_event_once_whoever_tells_it(ledger: JobLedger, name: str) -> None:
    ledger.tell(name, said=[SENTENCE, SENTENCE], waits_for=SENTENCE)
    ledger.tell(name, said=["ImagePullBackOff", SENTENCE], waits_for="ImagePullBackOff")
    warning = job_pb2.LogLine.LEVEL_WARNING
    assert lines(ledger, name) == [(warning, SENTENCE), (warning, "ImagePullBackOff")]
    assert to_message(ledger.get(name)).waits_for == "ImagePullBackOff"


def test_a_job_that_a_worker_has_claimed_waits_for_nothing(ledger: JobLedger, name: str) -> None:
    ledger.tell(name, waits_for=SENTENCE)
    assert ledger.claim(name).waits_for == ""


def test_a_job_that_lost_its_worker_or_is_over_waits_for_nothing(ledger: JobLedger, name: str) -> None:
    ledger.claim(name)
    ledger.tell(name, waits_for=SENTENCE)  # its pod was taken away, the next one finds no node
    assert ledger.requeue(name, "lost", counts=False, budget=3).waits_for == ""
    ledger.tell(name, waits_for=SENTENCE)
    assert ledger.cancel(name).waits_for == ""
    ledger.tell(name, waits_for=SENTENCE)
    assert ledger.get(name).waits_for == ""


def test_a_job_that_is_under_another_attempt_by_now_is_not_taken_from_it(ledger: JobLedger, name: str) -> None:
    seen = ledger.claim(name).attempt
    current = ledger.claim(name)
    assert ledger.requeue(name, "lost", counts=True, budget=3, attempt=seen) == current
    assert ledger.requeue(name, "lost", counts=True, budget=3, attempt=current.attempt).state is State.PENDING


def test_a_job_knows_its_pool(ledger: JobLedger) -> None:
    request = trainer_pb2.TrainRequest()
    submission = Submission(ledger=ledger, service="trainer", wake=lambda: None)
    assert ledger.get(submission.submit("Train", request, "", Work(spec=request, pool="a10")).name).pool == "a10"
