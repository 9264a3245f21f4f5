"""Which of a job's checkpoints are kept, and how much of each."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from atelier.artifacts.manifest import File
from atelier.jobs.job import Checkpoint
from atelier.jobs.tables import CheckpointRow


def committed(session: Session, job: str) -> list[Checkpoint]:
    """A job's checkpoints, rising."""
    rows = session.scalars(select(CheckpointRow).where(CheckpointRow.job == job).order_by(CheckpointRow.step))
    return [Checkpoint(step=r.step, prefix=r.prefix, files=tuple(File(**f) for f in r.files)) for r in rows]


def prune(session: Session, job: str, *, keep_full: int, keep_weights: int) -> list[str]:
    """Forgets what is older than the last so many (0 weights: keeps all); gives the store keys of what is no longer kept."""
    rows = list(session.scalars(select(CheckpointRow).where(CheckpointRow.job == job).order_by(CheckpointRow.step)))
    dropped = []
    for age, row in enumerate(reversed(rows)):
        if age < keep_full:
            continue
        weights = [f for f in row.files if f["path"].startswith("weights/") and (not keep_weights or age < keep_weights)]
        dropped += [f"{row.prefix}/{f['path']}" for f in row.files if f not in weights]
        if weights:
            row.files = weights
        else:
            session.delete(row)
    return dropped
