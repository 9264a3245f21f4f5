"""What meters hear of jobs, whoever changes them."""

from __future__ import annotations

import pytest

from atelier.errors import AtelierError
from atelier.jobs.job import Checkpoint, NewJob, State
from atelier.jobs.ledger import JobLedger
from atelier.jobs.standing import Standing, standing
from atelier.ledger import Database
from atelier.meters import Meters


class Heard(Meters):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def attempt_began(self, service: str) -> None:
        self.words.append(f"{service} began")

    def attempt_lost(self, service: str) -> None:
        self.words.append(f"{service} lost")

    def job_ended(self, service: str, *, state: str, seconds: float) -> None:
        assert 0 <= seconds < 60
        self.words.append(f"{service} {state}")


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def ledger(database: Database, heard: Heard) -> JobLedger:
    return JobLedger(database, meters=heard)


def submit(ledger: JobLedger, service: str = "trainer") -> str:
    return ledger.submit(NewJob(service=service, method="Train", request_id="", body_sha256="", spec=b"")).name


def test_attempts_and_ends_are_told_once(ledger: JobLedger, heard: Heard) -> None:
    name = submit(ledger)
    ledger.requeue(name, "nothing ran", counts=True, budget=3)
    first = ledger.claim(name).attempt
    ledger.heartbeat(name, first)
    ledger.requeue(name, "the worker died", counts=True, budget=3)
    ledger.requeue(name, "and once more is said so", counts=True, budget=3)
    second = ledger.claim(name).attempt
    ledger.checkpoint(name, second, Checkpoint(step=1, prefix="a", files=()), keep_full=1, keep_weights=1)
    ledger.complete(name, second, state=State.SUCCEEDED)
    ledger.cancel(name)
    ledger.delete(name)
    assert heard.words == ["trainer began", "trainer lost", "trainer began", "trainer SUCCEEDED"]


def test_a_spent_budget_is_a_lost_attempt_and_a_failed_job(ledger: JobLedger, heard: Heard) -> None:
    name = submit(ledger)
    ledger.claim(name)
    ledger.requeue(name, "the worker died", counts=True, budget=1)
    assert heard.words == ["trainer began", "trainer lost", "trainer FAILED"]


def test_what_makes_room_is_no_loss_and_what_never_began_can_end(ledger: JobLedger, heard: Heard) -> None:
    moved, waiting = submit(ledger), submit(ledger, "compiler")
    ledger.claim(moved)
    ledger.requeue(moved, "its control process was restarted", counts=False, budget=3)
    ledger.cancel(waiting)
    assert heard.words == ["trainer began", "compiler CANCELLED"]


def test_what_is_refused_is_not_told(ledger: JobLedger, heard: Heard) -> None:
    name = submit(ledger)
    attempt = ledger.claim(name).attempt
    ledger.claim(name)
    with pytest.raises(AtelierError, match="no longer counts"):
        ledger.complete(name, attempt, state=State.SUCCEEDED)
    assert heard.words == ["trainer began", "trainer began"]


def test_jobs_that_are_not_over_are_counted_by_service_and_state(ledger: JobLedger, database: Database) -> None:
    oldest, _, running, ended, other = (submit(ledger, service) for service in ("trainer",) * 4 + ("compiler",))
    ledger.claim(running)
    ledger.complete(ended, ledger.claim(ended).attempt, state=State.FAILED)
    found = sorted(standing(database, ["trainer", "converter"]), key=lambda each: each.state)
    created = {name: ledger.get(name).create_time for name in (oldest, running)}
    assert found == [
        Standing(service="trainer", state=State.PENDING, count=2, oldest=created[oldest]),
        Standing(service="trainer", state=State.RUNNING, count=1, oldest=created[running]),
    ]
    assert [each.service for each in standing(database, ["compiler"])] == ["compiler"] and other
    assert standing(database, []) == []
