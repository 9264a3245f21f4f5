"""How pools stand: written to the ledger by the process that looks after them, read by all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, String, delete
from sqlalchemy.orm import Mapped, Session, mapped_column

from atelier.ledger import Base, Database, now
from atelier.server.nodes import PoolNode


class PoolStateRow(Base):
    """A pool's state: `content` is a `PoolState`."""

    __tablename__ = "pool_states"
    pool: Mapped[str] = mapped_column(String(64), primary_key=True)
    content: Mapped[dict[str, Any]] = mapped_column(JSON)
    time: Mapped[datetime]


@dataclass(frozen=True, kw_only=True)
class PoolState:
    """What is known of a pool beside what its replicas report."""

    message: str = ""
    """What it waits for, or what its application suffers from."""
    in_place: bool = False
    """Whether its application is: a call may then wait for a replica at Serve's proxy."""
    target: int = 0
    """Replicas that Serve wants."""
    nodes: tuple[PoolNode, ...] = ()
    gives_to: str = ""
    """The job (`jobs/{id}`) that it gives a replica up for."""
    most: int = 0
    """Most replicas meanwhile."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Why a deployment with a model (`deployments/{id} {digest}`) does not get its MODEL or engine."""


class PoolStates:
    """Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, pool: str) -> PoolState:
        """By the pool's name; an empty one where nobody has looked yet."""
        with self._database.reading() as session:
            row = session.get(PoolStateRow, pool)
            content = dict(row.content) if row is not None else {}
        nodes = tuple(PoolNode(**_known(PoolNode, node)) for node in content.get("nodes", ()))
        return PoolState(**_known(PoolState, content) | {"nodes": nodes})

    def put(self, pool: str, state: PoolState) -> None:
        """Keeps how a pool stands now."""

        def keep(session: Session) -> None:
            session.merge(PoolStateRow(pool=pool, content=asdict(state), time=now()))

        self._database.write(keep)

    def forget(self) -> None:
        """Forgets all: what they were of has ended."""
        with self._database.transaction() as session:
            session.execute(delete(PoolStateRow))


def _known(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """What this version knows of what another may have written."""
    return {one.name: content[one.name] for one in fields(kind) if one.name in content}
