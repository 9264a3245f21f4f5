"""The tables that the first ledgers were made with; those that had no revision yet keep theirs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "artifact_uses",
        sa.Column("user", sa.String(length=128), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("user", "digest", name=op.f("pk_artifact_uses")),
        if_not_exists=True,
    )
    op.create_index(op.f("ix_artifact_uses_digest"), "artifact_uses", ["digest"], unique=False, if_not_exists=True)
    op.create_table(
        "artifacts",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=512), nullable=False),
        sa.Column("job", sa.String(length=128), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_artifacts")),
        if_not_exists=True,
    )
    op.create_index(op.f("ix_artifacts_create_time"), "artifacts", ["create_time"], unique=False, if_not_exists=True)
    op.create_index(op.f("ix_artifacts_key"), "artifacts", ["key"], unique=False, if_not_exists=True)
    op.create_index(op.f("ix_artifacts_kind"), "artifacts", ["kind"], unique=False, if_not_exists=True)
    op.create_table(
        "checkpoints",
        sa.Column("job", sa.String(length=64), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("prefix", sa.String(length=256), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("job", "step", name=op.f("pk_checkpoints")),
        if_not_exists=True,
    )
    op.create_table(
        "deployments",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("pool", sa.String(length=64), nullable=False),
        sa.Column("serve_eager", sa.Boolean(), nullable=False),
        sa.Column("compile", sa.Boolean(), nullable=False),
        sa.Column("max_steps", sa.Integer(), nullable=False),
        sa.Column("max_count", sa.Integer(), nullable=False),
        sa.Column("etag", sa.String(length=32), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("body_sha256", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployments")),
        if_not_exists=True,
    )
    op.create_index(op.f("ix_deployments_request_id"), "deployments", ["request_id"], unique=False, if_not_exists=True)
    op.create_table(
        "job_events",
        sa.Column("job", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job", "sequence", name=op.f("pk_job_events")),
        if_not_exists=True,
    )
    op.create_table(
        "job_requests",
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("body_sha256", sa.String(length=64), nullable=False),
        sa.Column("job", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("method", "request_id", name=op.f("pk_job_requests")),
        if_not_exists=True,
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("service", sa.String(length=32), nullable=False),
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("start_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("end_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("heartbeat_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_sequence", sa.Integer(), nullable=False),
        sa.Column("progress", sa.LargeBinary(), nullable=False),
        sa.Column("error", sa.LargeBinary(), nullable=False),
        sa.Column("outputs", sa.JSON(), nullable=False),
        sa.Column("inputs", sa.JSON(), nullable=False),
        sa.Column("reads", sa.JSON(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("processes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        if_not_exists=True,
    )
    op.create_index(op.f("ix_jobs_create_time"), "jobs", ["create_time"], unique=False, if_not_exists=True)
    op.create_index(op.f("ix_jobs_service"), "jobs", ["service"], unique=False, if_not_exists=True)
    op.create_index(op.f("ix_jobs_state"), "jobs", ["state"], unique=False, if_not_exists=True)
    op.create_table(
        "replica_reports",
        sa.Column("replica", sa.String(length=64), nullable=False),
        sa.Column("pool", sa.String(length=64), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("replica", name=op.f("pk_replica_reports")),
        if_not_exists=True,
    )
    op.create_index(op.f("ix_replica_reports_pool"), "replica_reports", ["pool"], unique=False, if_not_exists=True)
    op.create_table(
        "tags",
        sa.Column("tag", sa.String(length=128), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"],
            ["artifacts.digest"],
        ),
        sa.PrimaryKeyConstraint("tag", name=op.f("pk_tags")),
        if_not_exists=True,
    )
    op.create_index(op.f("ix_tags_digest"), "tags", ["digest"], unique=False, if_not_exists=True)
