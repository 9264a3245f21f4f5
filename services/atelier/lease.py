"""A lease in the ledger: of several processes one at a time does what only one may do, such as starting workers."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import String, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from atelier.ledger import Base, Database, now

logger = logging.getLogger("atelier.lease")

TERM_SECONDS = 15.0
"""Another process waits for so long after the holder was last heard of."""


class LeaseRow(Base):
    """Who holds a lease, and until when by the database's clock."""

    __tablename__ = "leases"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(String(128))
    until: Mapped[datetime]


@dataclass(kw_only=True)
class Lease:
    """One process's claim to the lease `name`.

    When it ends is written and read by the database's clock alone, so that machines need not agree on the time. The holder itself counts
    by its own steady clock from before it asked, and holds it for two thirds of the term: the rest is for its work to stop in, before
    another can take over. (A process that is stopped as a whole for that long wakes up believing it for an instant: what it writes has
    to carry a fencing token all the same.)
    """

    database: Database
    name: str
    term_seconds: float = TERM_SECONDS
    holder: str = field(default_factory=lambda: f"{socket.gethostname()[:100]}/{secrets.token_hex(4)}")
    _held_until: float = 0.0

    @property
    def held(self) -> bool:
        """Whether it is this process's now."""
        return time.monotonic() < self._held_until

    @property
    def left_seconds(self) -> float:
        """How long it is this process's still, if it is not renewed."""
        return max(0.0, self._held_until - time.monotonic())

    def acquire(self) -> bool:
        """Takes or renews it, in one short transaction; False where another process has it. Raises UNAVAILABLE."""
        began = time.monotonic()
        if not self.database.write(self._take):
            self._held_until = 0.0
            return False
        self._held_until = began + self.term_seconds * 2 / 3
        return True

    def release(self) -> None:
        """Lets another process have it at once. Raises UNAVAILABLE."""
        self._held_until = 0.0
        with self.database.transaction() as session:
            row = session.get(LeaseRow, self.name, with_for_update=True)
            if row is not None and row.holder == self.holder:
                session.delete(row)

    def _take(self, session: Session) -> bool:
        row = session.get(LeaseRow, self.name, with_for_update=True)
        moment = _clock(session)  # after the lock, for which it may have waited
        until = moment + timedelta(seconds=self.term_seconds)
        if row is None:
            session.add(LeaseRow(name=self.name, holder=self.holder, until=until))
            return True
        if row.holder != self.holder and row.until > moment:
            return False
        row.holder, row.until = self.holder, until
        return True


async def lead(lease: Lease, work: Callable[[], Awaitable[None]]) -> None:
    """Runs `work` while the lease is held, and again whenever it is regained, until this is cancelled; then lets go of it.

    `work` is cancelled when the lease cannot be renewed in time. While it ends (it may tidy up) the lease is renewed where that is
    possible: `lease.held` tells it whether it is alone still. What `work` raises is raised here.
    """
    every = lease.term_seconds / 5
    try:
        while True:
            while not await _acquired(lease):
                await asyncio.sleep(every)
            logger.info("this process has the lease %s", lease.name)
            if await _worked(lease, work, every=every):
                return
            logger.warning("this process has lost the lease %s", lease.name)
    finally:
        await _released(lease)


async def _worked(lease: Lease, work: Callable[[], Awaitable[None]], *, every: float) -> bool:
    """Whether `work` ended by itself, and not because the lease was lost."""
    task = asyncio.ensure_future(work())
    keeper = asyncio.create_task(_kept(lease, every=every))
    try:
        await asyncio.wait({task, keeper}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return False
        task.result()
        return True
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


async def _kept(lease: Lease, *, every: float) -> None:
    """Renews it until it is lost: taken by another, or not renewed in time."""
    renewal: asyncio.Task[bool] | None = None
    try:
        while lease.held:
            if renewal is None:
                await asyncio.sleep(min(every, lease.left_seconds))
                renewal = asyncio.create_task(_acquired(lease))
            await asyncio.wait({renewal}, timeout=lease.left_seconds)  # a database that hangs holds nobody up
            renewal = None if renewal.done() else renewal
    except asyncio.CancelledError:
        if renewal is not None:  # it must not overtake the giving back
            await asyncio.wait({renewal}, timeout=lease.term_seconds)
        raise


async def _acquired(lease: Lease) -> bool:
    try:
        return await asyncio.to_thread(lease.acquire)
    except Exception as error:
        logger.warning("the lease %s could not be taken or renewed: %s", lease.name, error)
        return False


async def _released(lease: Lease) -> None:
    try:
        await asyncio.to_thread(lease.release)
    except Exception as error:
        logger.warning("the lease %s ends by itself, it could not be given back: %s", lease.name, error)


def _clock(session: Session) -> datetime:
    """The database's time; SQLite's is this machine's."""
    if session.get_bind().dialect.name == "sqlite":
        return now()
    moment = session.scalar(select(func.clock_timestamp()))
    assert isinstance(moment, datetime)
    return moment
