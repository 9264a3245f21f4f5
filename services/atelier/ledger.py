"""The database below jobs, artifacts and deployments: SQLite in one folder, or Postgres.

Tables are declared beside the code that uses them, on `Base`. Nothing above this file may know which database it is.
"""

from __future__ import annotations

import base64
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

from sqlalchemy import ColumnElement, Connection, DateTime, Engine, MetaData, String, TypeDecorator, and_, create_engine, event, or_, true
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Mapped, Session, mapped_column

from atelier.errors import AtelierError, Status, invalid_field, unavailable

T = TypeVar("T")

BUSY_SECONDS = 30
"""How long a connection to SQLite waits for the others' writes."""
READING = "atelier_reading"
"""Option of connections that only read."""
WRITES = 4
"""How often a write is tried that others get in the way of."""

logger = logging.getLogger("atelier.ledger")


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time; SQLite forgets the zone, so it is put back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Puts the zone back."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class Base(DeclarativeBase):
    """All tables."""

    metadata = MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_name)s", "pk": "pk_%(table_name)s"})
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: UtcDateTime}


class ArtifactUse(Base):
    """`user` (`jobs/...`, `deployments/...`) needs the artifact: it cannot be deleted meanwhile."""

    __tablename__ = "artifact_uses"
    user: Mapped[str] = mapped_column(String(128), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a page of a list ends, newest first: the row's time and its key, so that no page costs more than the first."""

    time: datetime
    key: str

    @classmethod
    def read(cls, token: str) -> Place | None:
        """The place behind a page token; None for an empty one. Raises INVALID_ARGUMENT for what was not given out."""
        if not token:
            return None
        try:
            moment, key = base64.urlsafe_b64decode(token.encode()).decode().split("~")
            return cls(time=datetime.fromisoformat(moment), key=key)
        except ValueError:
            raise invalid_field("page_token", "is not one that was given out") from None

    @property
    def token(self) -> str:
        """The page token."""
        return base64.urlsafe_b64encode(f"{self.time.isoformat()}~{self.key}".encode()).decode()


def after(place: Place | None, time: InstrumentedAttribute[datetime], key: InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """What comes after a place, in the order of falling time and rising key."""
    return true() if place is None else or_(time < place.time, and_(time == place.time, key > place.key))


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


class Database:
    """Sessions on one database: `sqlite:////data/ledger.db`, `postgresql://user:password@host/name`. Others raise INVALID_ARGUMENT."""

    def __init__(self, url: str) -> None:
        try:
            self.engine: Engine = create_engine(_with_driver(url), pool_pre_ping=not url.startswith("sqlite"))
        except (ArgumentError, ImportError) as error:  # the URL may hold a password: it is not shown
            sentence = (
                "is no URL of a database; write sqlite:////FOLDER/ledger.db or postgresql://USER:PASSWORD@HOST/NAME (extra `control`)"
            )
            raise invalid_field("ATELIER_LEDGER", sentence) from error
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_immediate)
        # SQLite's connections begin nothing by themselves, see _configure_sqlite.
        self._reader = self.engine.execution_options(**({"isolation_level": "AUTOCOMMIT"} if self.shared else {READING: True}))

    @property
    def shared(self) -> bool:
        """Whether processes that hold no lock of the data folder's may work on it too."""
        return self.engine.dialect.name != "sqlite"

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that commits at the end, or rolls back and raises. Keep it short: SQLite lets one write at a time.

        Raises UNAVAILABLE where the database does not answer, RESOURCE_EXHAUSTED where its disk is full.
        """
        with _answering(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that only reads: each query sees what is there at its moment, at the cost of one round trip, and waits for no write.

        Raises UNAVAILABLE as `transaction` does.
        """
        with _answering(), Session(self._reader) as session:
            yield session

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection below all sessions, in a transaction of its own; for migrations. Raises as `transaction` does."""
        with _answering(), self.engine.begin() as connection:
            yield connection

    def write(self, work: Callable[[Session], T]) -> T:
        """What `work` gives, in a transaction; it is begun again where another process made the same row first, or a deadlock was broken.

        `work` sees the row then. A row that is read to be changed is read `with_for_update`.
        """
        for _ in range(WRITES - 1):
            try:
                with self.transaction() as session:
                    return work(session)
            except IntegrityError:
                continue
            except OperationalError as error:
                if not _broken_deadlock(error):
                    raise
        with self.transaction() as session:
            return work(session)

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()


def _with_driver(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in ("postgresql", "postgres") else url


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        found = _translated(error)
        if found is None:
            raise
        logger.warning("the ledger failed: %s", error.orig)
        raise found from error


def _translated(error: OperationalError) -> AtelierError | None:
    """What a client is told; None for a deadlock, and for faults of ours, such as a table that is missing."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is None:
        known = not _broken_deadlock(error)
    elif code & 0xFF == sqlite3.SQLITE_FULL:
        return AtelierError(Status.RESOURCE_EXHAUSTED, "STORAGE_FULL", "the server's disk is full: make room there, then try again")
    else:
        known = code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)
    return unavailable("LEDGER_UNAVAILABLE", "the ledger does not answer: try again", retry_after_seconds=2.0) if known else None


def _broken_deadlock(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) in ("40P01", "40001")


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy emits BEGIN itself, see _begin_immediate
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={1000 * BUSY_SECONDS}", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    _use_wal(cursor)
    cursor.close()


def _use_wal(cursor: Any) -> None:
    """Sets the mode, which the file then keeps. Processes that make a new file together are refused at once, whatever the timeout."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.02)


def _begin_immediate(connection: Connection) -> None:
    if connection.get_execution_options().get(READING):
        return
    # A read that turns into a write would fail with SQLITE_BUSY at once, whatever the timeout; taking the lock first waits for it.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
