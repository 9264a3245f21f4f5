"""Manifests beside the artifacts, so that lists ask the store for nothing; jobs by state, newest first."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    """Adds a column that may be empty, and indexes in the order of the lists."""
    op.add_column("artifacts", sa.Column("manifest", sa.LargeBinary(), nullable=True))
    op.create_index("ix_jobs_state_create_time", "jobs", ["state", "create_time", "id"])
    op.create_index("ix_artifacts_kind_create_time", "artifacts", ["kind", "create_time", "digest"])
