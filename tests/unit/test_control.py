"""What a control process does beyond its services: everything started as a command starts it, without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import servers
from sqlalchemy import select

from atelier import app
from atelier.artifacts.catalog import Catalog
from atelier.artifacts.manifest import File, Kind, Manifest, hash_file
from atelier.artifacts.store import Store
from atelier.client import Client
from atelier.jobs.job import Checkpoint, NewJob
from atelier.jobs.ledger import JobLedger
from atelier.lease import LeaseRow
from atelier.ledger import Database
from atelier.settings import read


def test_the_checkpoints_of_a_run_go_with_its_record(tmp_path: Path) -> None:
    settings = read(data=tmp_path)
    (tmp_path / "record.json").write_text("{}")
    file = File(path="record.json", size=2, sha256=hash_file(tmp_path / "record.json"))
    with app.inside(tmp_path) as address, Client(address.target, address.token) as client:
        database, store = Database(settings.ledger_url), Store.open(settings.store_url)
        ledger, catalog = JobLedger(database), Catalog(store=store, database=database)
        jobs = [ledger.submit(NewJob(service="none", method="M", request_id="", body_sha256="", spec=b"")) for _ in range(2)]
        runs = []
        for job in jobs:
            attempt = ledger.claim(job.name).attempt
            store.put_object(f"checkpoints/{job.id}/1-00000005/weights/a", b"x")
            checkpoint = Checkpoint(step=5, prefix=f"checkpoints/{job.id}/1-00000005", files=(file,))
            ledger.checkpoint(job.name, attempt, checkpoint, keep_full=2, keep_weights=0)
            store.put_blob(tmp_path / "record.json", file)
            runs.append(catalog.commit(Manifest(kind=Kind.RUN, files=(file,), metadata={"job": job.id}), job=job.name).name)
        client.artifacts.delete(runs[0])
        assert [len(ledger.checkpoints(job.name)) for job in jobs] == [0, 1]
        assert store.object(f"checkpoints/{jobs[1].id}/1-00000005/weights/a") == b"x"
        assert not (tmp_path / "store" / "checkpoints" / jobs[0].id / "1-00000005" / "weights" / "a").exists()
        database.close()


def test_of_processes_on_one_postgres_one_starts_workers_and_another_takes_over(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_LEDGER", url := servers.new_database(postgres))
    database = Database(url)

    def holder() -> str | None:
        with database.reading() as session:
            return session.scalar(select(LeaseRow.holder).where(LeaseRow.name == "workers-trainer-converter-compiler"))

    with ExitStack() as one, ExitStack() as two:
        one.enter_context(app.inside(tmp_path / "one"))
        until(lambda: holder() is not None)
        first = holder()
        two.enter_context(app.inside(tmp_path / "two"))
        assert holder() == first
        one.close()
        until(lambda: holder() not in (None, first))
    assert holder() is None
    database.close()


def until(look: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not look():
        assert time.monotonic() < end
        time.sleep(0.05)
