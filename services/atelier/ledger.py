"""The database below jobs, artifacts and deployments: SQLite in one folder, or Postgres.

Tables are declared beside the code that uses them, on `Base`. Nothing above this file may know which database it is.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import DateTime, Engine, MetaData, String, TypeDecorator, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

BUSY_SECONDS = 30
"""How long a connection to SQLite waits for the others' writes."""


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


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


class Database:
    """Sessions on one database. `url` is SQLAlchemy's: `sqlite:////data/ledger.db`, `postgresql+psycopg://...`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine: Engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_immediate)

    def create_tables(self) -> None:
        """Makes the tables that are missing."""
        Base.metadata.create_all(self.engine)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that commits at the end, or rolls back and raises. Keep it short: SQLite lets one write at a time."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()


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


def _begin_immediate(connection: Any) -> None:
    # A read that turns into a write would fail with SQLITE_BUSY at once, whatever the timeout; taking the lock first waits for it.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
