"""What shall be served: deployments in the ledger, and what replicas report of themselves."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import LargeBinary, String, delete, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from atelier.artifacts.catalog import use
from atelier.errors import AtelierError, Status, invalid_field, not_found
from atelier.ledger import ArtifactUse, Base, Database, now

FRESH = timedelta(seconds=30)
"""A replica that has not reported for so long is gone."""


class DeploymentRow(Base):
    """A deployment."""

    __tablename__ = "deployments"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(String(64))
    pool: Mapped[str] = mapped_column(String(64))
    serve_eager: Mapped[bool]
    compile: Mapped[bool]
    max_steps: Mapped[int]
    max_count: Mapped[int]
    etag: Mapped[str] = mapped_column(String(32))
    create_time: Mapped[datetime]
    request_id: Mapped[str] = mapped_column(String(64), index=True)
    body_sha256: Mapped[str] = mapped_column(String(64))


class ReportRow(Base):
    """The last report of a replica: `content` is a serialized `ReportRequest`."""

    __tablename__ = "replica_reports"
    replica: Mapped[str] = mapped_column(String(64), primary_key=True)
    pool: Mapped[str] = mapped_column(String(64), index=True)
    content: Mapped[bytes] = mapped_column(LargeBinary)
    time: Mapped[datetime]


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A named, served model; `model` is the digest of a MODEL, `pool` a pool's name."""

    id: str
    model: str
    pool: str
    serve_eager: bool = True
    compile: bool = True
    max_steps: int = 150
    max_count: int = 8
    etag: str = ""
    create_time: datetime | None = None

    @property
    def name(self) -> str:
        """`deployments/{id}`."""
        return f"deployments/{self.id}"


class DeploymentLedger:
    """Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, new: Deployment, *, request_id: str, body: bytes) -> Deployment:
        """Makes a deployment; the same request gives the same one. Raises ALREADY_EXISTS."""
        digest = hashlib.sha256(body).hexdigest()

        def make(session: Session) -> Deployment:
            known = session.scalars(select(DeploymentRow).where(DeploymentRow.request_id == request_id)).first() if request_id else None
            if known is not None and (known.body_sha256 != digest or known.id != new.id):
                raise invalid_field("request_id", "was used with another request: draw a new one", reason="REQUEST_ID_REUSED")
            if known is not None:
                return _deployment(known)
            if session.get(DeploymentRow, new.id):
                sentence = f"{new.name} exists already: update it, or choose another name"
                raise AtelierError(Status.ALREADY_EXISTS, "DEPLOYMENT_EXISTS", sentence)
            row = DeploymentRow(id=new.id, create_time=now(), request_id=request_id, body_sha256=digest)
            _write(session, row, new)
            return _deployment(row)

        return self._database.write(make)

    def update(self, changed: Deployment, *, etag: str) -> Deployment:
        """Changes a deployment. Raises ABORTED when `etag` is set and is not the current one."""
        with self._database.transaction() as session:
            row = _row(session, changed.name, lock=True)
            if etag and etag != row.etag:
                raise AtelierError(Status.ABORTED, "ETAG_MISMATCH", f"{changed.name} was changed meanwhile: read it again")
            _write(session, row, changed)
            return _deployment(row)

    def get(self, name: str) -> Deployment:
        """By `deployments/{id}`. Raises NOT_FOUND."""
        with self._database.reading() as session:
            return _deployment(_row(session, name))

    def all(self) -> list[Deployment]:
        """All, by name."""
        with self._database.reading() as session:
            return [_deployment(row) for row in session.scalars(select(DeploymentRow).order_by(DeploymentRow.id))]

    def delete(self, name: str) -> None:
        """Deletes a deployment."""
        with self._database.transaction() as session:
            row = _row(session, name, lock=True)
            session.execute(delete(ArtifactUse).where(ArtifactUse.user == f"deployments/{row.id}"))
            session.delete(row)

    def report(self, replica: str, pool: str, content: bytes) -> None:
        """Keeps a replica's report."""

        def keep(session: Session) -> None:
            session.merge(ReportRow(replica=replica, pool=pool, content=content, time=now()))
            session.execute(delete(ReportRow).where(ReportRow.pool == pool, ReportRow.time < now() - timedelta(days=1)))

        self._database.write(keep)

    def forget_reports(self) -> None:
        """Forgets all reports: the replicas that wrote them are gone."""
        with self._database.transaction() as session:
            session.execute(delete(ReportRow))

    def reports(self, pool: str) -> Sequence[bytes]:
        """The reports of replicas that are there."""
        query = select(ReportRow.content).where(ReportRow.pool == pool, ReportRow.time > now() - FRESH).order_by(ReportRow.replica)
        with self._database.reading() as session:
            return list(session.scalars(query))

    def last_reports(self, pool: str) -> Sequence[bytes]:
        """What the last replicas of a pool have reported that there were together, however long ago."""
        newest = select(func.max(ReportRow.time)).where(ReportRow.pool == pool)
        with self._database.reading() as session:
            moment = session.scalar(newest)
            if moment is None:
                return []
            query = select(ReportRow.content).where(ReportRow.pool == pool, ReportRow.time > moment - FRESH).order_by(ReportRow.replica)
            return list(session.scalars(query))


def _row(session: Session, name: str, *, lock: bool = False) -> DeploymentRow:
    row = session.get(DeploymentRow, name.removeprefix("deployments/"), with_for_update=True if lock else None)
    if row is None:
        raise not_found("deployment", name, hint="`atelier deployments` shows what there is")
    return row


def _write(session: Session, row: DeploymentRow, values: Deployment) -> None:
    row.model, row.pool, row.serve_eager, row.compile = values.model, values.pool, values.serve_eager, values.compile
    row.max_steps, row.max_count, row.etag = values.max_steps, values.max_count, secrets.token_hex(8)
    session.add(row)
    session.execute(delete(ArtifactUse).where(ArtifactUse.user == values.name))
    use(session, values.name, [values.model])


def _deployment(row: DeploymentRow) -> Deployment:
    return Deployment(
        id=row.id, model=row.model, pool=row.pool, serve_eager=row.serve_eager, compile=row.compile, max_steps=row.max_steps,
        max_count=row.max_count, etag=row.etag, create_time=row.create_time,
    )  # fmt: skip
