"""The pool of a job and what its worker waits for; leases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    """Adds two columns that are empty where nobody says otherwise, and a table."""
    op.add_column("jobs", sa.Column("pool", sa.String(length=64), nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("waits_for", sa.Text(), nullable=False, server_default=""))
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=128), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
