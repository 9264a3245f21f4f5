"""The ledger's tables, brought to what this version needs.

Revisions only expand: a column may be added, and must do without a value, so that the release before works on the same ledger.
"""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from atelier.ledger import Database

LOCK = 0x41_74_65_6C
"""Postgres' advisory lock that one migration holds at a time. SQLite's is the write lock of the transaction itself."""

logger = logging.getLogger("atelier.migrations")


def migrate(database: Database) -> str:
    """Applies what is missing, under a lock, all or nothing; gives the revision that the ledger has then.

    A revision that this version does not know is of a newer one: it is left alone, and served.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with database.connection() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        context = MigrationContext.configure(connection)
        before = context.get_current_revision()
        if before is not None and before not in known:
            logger.info("the ledger has revision %s of a newer version; it is served as it is", before)
            return before
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        after = context.get_current_revision()
    assert after is not None
    if after != before:
        logger.info("the ledger has revision %s now", after)
    return after
