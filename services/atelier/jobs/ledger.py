"""Jobs in the database: accepted once, claimed under a fencing token, ended once; each change of state with its event."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from atelier.artifacts.catalog import use
from atelier.errors import AtelierError, Status, failed_precondition, invalid_field, not_found
from atelier.jobs.checkpoints import committed, prune
from atelier.jobs.events import attempt_event, checkpoint_event, error_bytes, log_event, state_event
from atelier.jobs.job import ENDED, Checkpoint, Event, Job, NewJob, Output, State
from atelier.jobs.measuring import measure
from atelier.jobs.tables import CheckpointRow, EventRow, JobRow, RequestRow, to_job
from atelier.ledger import ArtifactUse, Database, Place, after, now
from atelier.meters import UNMEASURED, Meters


class JobLedger:
    """Thread-safe; knows nothing of workers but their fencing tokens."""

    def __init__(self, database: Database, *, meters: Meters = UNMEASURED) -> None:
        self._database = database
        self._meters = meters

    # For those who ask for jobs.

    def submit(self, new: NewJob) -> Job:
        """Accepts a job. The same method, request id and body give the same job; another body is INVALID_ARGUMENT."""

        def accept(session: Session) -> Job:
            known = session.get(RequestRow, (new.method, new.request_id), with_for_update=True) if new.request_id else None
            if known is not None and known.body_sha256 != new.body_sha256:
                sentence = f"was used for jobs/{known.job} with another request: draw a new one"
                raise invalid_field("request_id", sentence, reason="REQUEST_ID_REUSED")
            if known is not None and (row := session.get(JobRow, known.job)) is not None:
                return to_job(row)
            row = JobRow(
                id=secrets.token_hex(6), service=new.service, method=new.method, spec=new.spec, state=State.PENDING, create_time=now(),
                attempt=0, failures=0, last_sequence=0, progress=b"", error=b"", outputs=[], inputs=list(new.inputs),
                reads=list(new.reads), plan=list(new.plan), tags=list(new.tags), processes=new.processes, pool=new.pool, waits_for="",
            )  # fmt: skip
            session.add(row)
            if known is not None:
                known.job = row.id
            elif new.request_id:  # added, never merged: another process that was first makes this fail, and `write` begins again
                session.add(RequestRow(method=new.method, request_id=new.request_id, body_sha256=new.body_sha256, job=row.id))
            use(session, f"jobs/{row.id}", new.inputs)
            _append(session, row, [state_event(State.PENDING)])
            return to_job(row)

        return self._database.write(accept)

    def get(self, name: str) -> Job:
        """By `jobs/{id}`. Raises NOT_FOUND."""
        with self._database.reading() as session:
            return to_job(_row(session, name))

    def page(self, *, state: State | None, page_size: int, page_token: str) -> tuple[list[Job], str]:
        """A page, newest first, and the token of the next."""
        query = select(JobRow).order_by(JobRow.create_time.desc(), JobRow.id).limit(page_size + 1)
        query = query.where(after(Place.read(page_token), JobRow.create_time, JobRow.id))
        if state is not None:
            query = query.where(JobRow.state == state)
        with self._database.reading() as session:
            jobs = [to_job(row) for row in session.scalars(query)]
        page, more = jobs[:page_size], len(jobs) > page_size
        return page, Place(time=page[-1].create_time, key=page[-1].id).token if more else ""

    def events(self, name: str, *, after_sequence: int, limit: int = 500) -> tuple[list[Event], Job]:
        """The events after a sequence, and the job as it is in the same moment."""
        with self._database.reading() as session:
            row = _row(session, name)
            query = select(EventRow).where(EventRow.job == row.id, EventRow.sequence > after_sequence)
            rows = session.scalars(query.order_by(EventRow.sequence).limit(limit))
            return [Event(sequence=e.sequence, time=e.time, payload=e.payload) for e in rows], to_job(row)

    def cancel(self, name: str) -> Job:
        """Asks a job to stop; one that waits is cancelled at once, one that has ended is left as it is."""
        with self._changing(name) as (session, row):
            if row.state == State.PENDING:
                _end(session, row, State.CANCELLED)
            elif row.state == State.RUNNING:
                row.state = State.CANCELLING
                _append(session, row, [state_event(State.CANCELLING)])
            return to_job(row)

    def delete(self, name: str) -> None:
        """Forgets a job that has ended; what it has in the store is the caller's to delete."""
        with self._changing(name) as (session, row):
            if row.state not in ENDED:
                raise failed_precondition("JOB_NOT_ENDED", f"{name} is {row.state}: cancel it first", state=row.state)
            for table in (EventRow, CheckpointRow, RequestRow):
                session.execute(delete(table).where(table.job == row.id))
            session.delete(row)

    # For the reconciler.

    def unended(self, services: Sequence[str]) -> list[Job]:
        """Jobs of these services that are not over, oldest first."""
        states = [str(state) for state in State if state not in ENDED]
        query = select(JobRow).where(JobRow.service.in_(services), JobRow.state.in_(states)).order_by(JobRow.create_time)
        with self._database.reading() as session:
            return [to_job(row) for row in session.scalars(query)]

    def requeue(self, name: str, reason: str, *, counts: bool, budget: int, attempt: int | None = None) -> Job:
        """A worker was lost: the job waits for another one, ends as cancelled if that was wanted, or fails when its budget is spent.

        Nothing happens where the job is under another than the given `attempt` by now.
        """
        with self._changing(name) as (session, row):
            if row.state in ENDED or row.state == State.PENDING or attempt not in (None, row.attempt):
                return to_job(row)
            row.waits_for = ""
            _append(session, row, [attempt_event(row.attempt, reason)])
            row.failures += counts
            if row.state == State.CANCELLING:
                _end(session, row, State.CANCELLED)
            elif row.failures >= budget:
                sentence = f"{reason}; {row.failures} attempts failed in the same way, the worker's log says more"
                _end(session, row, State.FAILED, error=error_bytes(AtelierError(Status.INTERNAL, "WORKER_LOST", sentence)))
            else:
                row.state = State.PENDING  # whatever still runs is fenced off: it writes to a job that runs, under the last attempt
                _append(session, row, [state_event(State.PENDING)])
            return to_job(row)

    def tell(self, name: str, *, said: Sequence[str] = (), waits_for: str) -> None:
        """What was seen of a job's worker: each sentence becomes an event, once; and what it waits for now, empty for nothing."""
        payloads = [log_event(sentence, "warning") for sentence in dict.fromkeys(said)]
        with self._changing(name) as (session, row):
            query = select(EventRow.payload).where(EventRow.job == row.id, EventRow.payload.in_(payloads))
            known = set(session.scalars(query)) if payloads else set()
            _append(session, row, [payload for payload in payloads if payload not in known])
            if row.state not in ENDED:
                row.waits_for = waits_for

    def log(self, name: str, payloads: Sequence[bytes]) -> None:
        """Adds events without a worker."""
        with self._database.transaction() as session:
            _append(session, _row(session, name, lock=True), payloads)

    # For workers: every call carries the fencing token.

    def claim(self, name: str) -> Job:
        """Begins an attempt; every earlier one is void from now on."""
        with self._changing(name) as (session, row):
            if row.state not in (State.PENDING, State.RUNNING):
                raise failed_precondition("JOB_NOT_CLAIMABLE", f"{name} is {row.state}", state=row.state)
            row.attempt += 1
            row.start_time = row.start_time or now()
            row.heartbeat_time = now()
            row.waits_for = ""
            events = [attempt_event(row.attempt, "started")]
            if row.state != State.RUNNING:
                row.state = State.RUNNING
                events.append(state_event(State.RUNNING))
            _append(session, row, events)
            return to_job(row)

    def heartbeat(self, name: str, attempt: int) -> bool:
        """Says that the worker lives; tells whether it shall stop."""
        with self._database.transaction() as session:
            row = _fenced(session, name, attempt)
            row.heartbeat_time = now()
            return row.state == State.CANCELLING

    def append(self, name: str, attempt: int, payloads: Sequence[bytes], progress: bytes = b"") -> bool:
        """Adds events; tells whether the worker shall stop."""
        with self._database.transaction() as session:
            row = _fenced(session, name, attempt)
            row.heartbeat_time = now()
            row.progress = progress or row.progress
            _append(session, row, payloads)
            return row.state == State.CANCELLING

    def check(self, name: str, attempt: int) -> Job:
        """The job, if this attempt is still the one that counts. Raises ABORTED."""
        with self._database.transaction() as session:
            return to_job(_fenced(session, name, attempt))

    def checkpoint(self, name: str, attempt: int, new: Checkpoint, *, keep_full: int, keep_weights: int) -> tuple[list[str], bool]:
        """Commits a checkpoint with its event; gives the store keys of what is no longer kept, and whether the worker shall stop."""
        with self._database.transaction() as session:
            row = _fenced(session, name, attempt)
            files = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in new.files]
            session.merge(CheckpointRow(job=row.id, step=new.step, prefix=new.prefix, files=files))
            row.failures = 0  # progress was made: the budget begins anew
            _append(session, row, [checkpoint_event(new.step)])
            session.flush()
            return prune(session, row.id, keep_full=keep_full, keep_weights=keep_weights), row.state == State.CANCELLING

    def checkpoints(self, name: str) -> list[Checkpoint]:
        """A job's checkpoints, rising."""
        with self._database.reading() as session:
            return committed(session, _row(session, name).id)

    def forget_checkpoints(self, name: str) -> None:
        """Nobody will resume from them; what they have in the store is the caller's to delete. A job that is gone is fine."""
        with self._database.transaction() as session:
            session.execute(delete(CheckpointRow).where(CheckpointRow.job == name.removeprefix("jobs/")))

    def complete(self, name: str, attempt: int, *, state: State, outputs: Sequence[Output] = (), error: bytes = b"") -> Job:
        """Ends the job."""
        assert state in ENDED
        with self._changing(name, attempt) as (session, row):
            row.outputs = [{"role": o.role, "digest": o.digest} for o in outputs]
            _end(session, row, state, error=error)
            return to_job(row)

    @contextmanager
    def _changing(self, name: str, attempt: int | None = None) -> Iterator[tuple[Session, JobRow]]:
        """The job's row, locked, and fenced where an attempt is given; what became of the job is measured once it is committed."""
        with self._database.transaction() as session:
            row = _row(session, name, lock=True) if attempt is None else _fenced(session, name, attempt)
            before = to_job(row)
            yield session, row
            changed = to_job(row)
        measure(self._meters, before, changed)


def _row(session: Session, name: str, *, lock: bool = False) -> JobRow:
    """The job's row; whoever changes it locks it first, so that no two do at once."""
    row = session.get(JobRow, name.removeprefix("jobs/"), with_for_update=True if lock else None)
    if row is None:
        raise not_found("job", name, hint="`atelier jobs list` shows what there is")
    return row


def _fenced(session: Session, name: str, attempt: int) -> JobRow:
    row = _row(session, name, lock=True)
    if row.attempt != attempt or row.state not in (State.RUNNING, State.CANCELLING):
        sentence = f"attempt {attempt} of {name} no longer counts: the job is {row.state}, attempt {row.attempt}"
        raise AtelierError(Status.ABORTED, "ATTEMPT_SUPERSEDED", sentence)
    return row


def _append(session: Session, row: JobRow, payloads: Sequence[bytes]) -> None:
    for payload in payloads:
        row.last_sequence += 1
        session.add(EventRow(job=row.id, sequence=row.last_sequence, time=now(), payload=payload))


def _end(session: Session, row: JobRow, state: State, *, error: bytes = b"") -> None:
    row.state, row.end_time, row.error, row.waits_for = state, now(), error, ""
    session.execute(delete(ArtifactUse).where(ArtifactUse.user == f"jobs/{row.id}"))
    _append(session, row, [state_event(state)])
