"""The database below everything: what several processes write at once, and what clients hear when it is away."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import servers
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from atelier.artifacts.catalog import ArtifactRow, Catalog
from atelier.artifacts.manifest import File, Kind, Manifest
from atelier.artifacts.store import Store
from atelier.errors import AtelierError, Status
from atelier.jobs.events import log_event
from atelier.jobs.job import NewJob
from atelier.jobs.ledger import JobLedger
from atelier.ledger import ArtifactUse, Database, Place, now
from atelier.migrations import migrate


def add_artifact(database: Database, digest: str, manifest: bytes | None = None) -> None:
    with database.transaction() as session:
        session.add(ArtifactRow(digest=digest, kind="MODEL", key="", job="", signature=b"", create_time=now(), manifest=manifest))


def new(**values: object) -> NewJob:
    return NewJob(service="trainer", method="Train", request_id="", body_sha256="a" * 64, spec=b"", **values)  # type: ignore[arg-type]


def test_events_that_many_write_at_once_are_numbered_without_gaps(ledger_url: str, database: Database) -> None:
    ledgers = [JobLedger(Database(ledger_url)) for _ in range(4)]
    name = ledgers[0].submit(new()).name
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: ledgers[index % 4].log(name, [log_event(str(index))]), range(80)))
    events, job = ledgers[0].events(name, after_sequence=0)
    assert [event.sequence for event in events] == list(range(1, 82)) and job.last_sequence == 81


def test_what_is_deleted_and_taken_at_once_is_one_of_both(ledger_url: str, database: Database) -> None:
    catalog, ledger = Catalog(store=Store.open("memory://"), database=database), JobLedger(Database(ledger_url))

    def attempt(index: int, digest: str) -> str:
        try:
            if index % 2:
                catalog.delete(digest)
                return "deleted"
            ledger.submit(new(inputs=(digest,)))
        except AtelierError as error:
            return error.reason
        return "taken"

    outcomes = set()
    for number in range(12):
        manifest = Manifest(kind=Kind.MODEL, files=(File(path="a", size=1, sha256="a" * 64),), metadata={"number": number})
        digest = manifest.digest
        add_artifact(database, digest, manifest.canonical_json())
        with ThreadPoolExecutor(2) as pool:
            outcomes.add(tuple(pool.map(lambda index, digest=digest: attempt(index, digest), range(2))))  # type: ignore[misc]
    assert outcomes <= {("taken", "ARTIFACT_IN_USE"), ("ARTIFACT_NOT_FOUND", "deleted")}
    with database.transaction() as session:
        used, there = ({row.digest for row in session.query(table)} for table in (ArtifactUse, ArtifactRow))
    assert used == there


def test_a_write_that_another_was_faster_with_begins_again(database: Database) -> None:
    calls: list[bool] = []

    def work(session: Session) -> bool:
        found = session.get(ArtifactRow, "d" * 64) is not None
        calls.append(found)
        if not found:
            add_artifact_elsewhere()
            session.add(ArtifactRow(digest="d" * 64, kind="MODEL", key="", job="", signature=b"", create_time=now()))
        return found

    def add_artifact_elsewhere() -> None:
        if database.engine.dialect.name == "postgresql":
            add_artifact(database, "d" * 64)

    assert database.write(work) is (database.engine.dialect.name == "postgresql")
    assert calls == ([False, True] if database.engine.dialect.name == "postgresql" else [False])


def test_who_reads_waits_for_nobody_that_writes(database: Database) -> None:
    ledger = JobLedger(database)
    name = ledger.submit(new()).name
    with ThreadPoolExecutor(1) as pool, database.transaction() as session:
        session.execute(text("UPDATE jobs SET waits_for = 'a device'"))
        assert pool.submit(ledger.get, name).result(timeout=5).waits_for == ""
    assert ledger.get(name).waits_for == "a device"


def test_a_ledger_that_is_away_is_unavailable() -> None:
    database = Database(f"postgresql://nobody@127.0.0.1:{servers.free_port()}/none")
    for call in (lambda: JobLedger(database).get("jobs/none"), lambda: migrate(database)):
        with pytest.raises(AtelierError) as caught:
            call()
        assert (caught.value.status, caught.value.reason) == (Status.UNAVAILABLE, "LEDGER_UNAVAILABLE")
        assert caught.value.retry_after_seconds and "127.0.0.1" not in caught.value.message


def test_a_disk_that_is_full_is_said_and_a_fault_of_ours_is_no_outage(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'ledger.db'}")
    migrate(database)
    with database.transaction() as session:
        pages = session.execute(text("PRAGMA page_count")).scalar()
    with pytest.raises(AtelierError) as caught, database.transaction() as session:
        session.execute(text(f"PRAGMA max_page_count = {pages}"))
        session.add(ArtifactRow(digest="d" * 64, kind="MODEL", key="", job="", signature=b"x" * 100_000, create_time=now()))
    assert (caught.value.status, caught.value.reason) == (Status.RESOURCE_EXHAUSTED, "STORAGE_FULL")
    with pytest.raises(OperationalError, match="no such table"), database.transaction() as session:
        session.execute(text("SELECT * FROM nowhere"))
    database.close()


def test_a_page_ends_where_the_next_begins() -> None:
    place = Place(time=now() - timedelta(days=1), key="a")
    assert Place.read(place.token) == place and Place.read("") is None
    for token in ("x", "12", "YQ==", "~~"):
        with pytest.raises(AtelierError) as caught:
            Place.read(token)
        assert caught.value.status is Status.INVALID_ARGUMENT


@pytest.mark.parametrize("url", ["", "secret", "mysql://me:secret@host/x", "oracle+secret://"])
def test_a_url_that_is_no_ledger_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(AtelierError, match="ATELIER_LEDGER") as caught:
        Database(url)
    assert "secret" not in caught.value.message


def test_whoever_opens_a_new_ledger_waits_for_another_that_makes_it(tmp_path: Path) -> None:
    # SQLite refuses the change to WAL at once, whatever the timeout, while another connection writes in the old mode.
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE half_made (id)")
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO half_made VALUES (1)")
    threading.Timer(0.3, lambda: other.execute("COMMIT")).start()
    database = Database(f"sqlite:///{tmp_path / 'ledger.db'}")
    migrate(database)
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    database.close()
    other.close()
