"""How many jobs are not over yet: what a scrape of metrics asks the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from atelier.jobs.job import ENDED, State
from atelier.jobs.tables import JobRow
from atelier.ledger import Database

UNENDED = tuple(state for state in State if state not in ENDED)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The jobs of a service that are in one state: how many, and when the oldest was submitted."""

    service: str
    state: State
    count: int
    oldest: datetime


def standing(database: Database, services: Sequence[str]) -> list[Standing]:
    """Of each service and state that has any; by an index, whatever the number of jobs that are over. Raises as `Database.transaction`."""
    query = (
        select(JobRow.service, JobRow.state, func.count(), func.min(JobRow.create_time))
        .where(JobRow.state.in_([str(state) for state in UNENDED]), JobRow.service.in_(services))
        .group_by(JobRow.service, JobRow.state)
    )
    with database.reading() as session:
        rows = session.execute(query).all()
    return [Standing(service=service, state=State(state), count=count, oldest=oldest) for service, state, count, oldest in rows]
