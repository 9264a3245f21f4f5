"""The ledger's tables come to be what the code says, from nothing and from every revision before, and only ever grow."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

import atelier.control  # noqa: F401  all tables
from atelier import migrations
from atelier.artifacts.catalog import ArtifactRow, Catalog
from atelier.artifacts.manifest import File, Kind, Manifest
from atelier.artifacts.store import Store
from atelier.ledger import Base, Database, now
from atelier.migrations import migrate


@pytest.fixture
def config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    return config


def up_to(database: Database, config: Config, revision: str) -> None:
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_the_revisions_make_the_tables_that_the_code_declares(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_processes_that_start_together_migrate_once(ledger_url: str) -> None:
    databases = [Database(ledger_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(migrate, databases))) == 1
    for database in databases:
        database.close()


def test_artifacts_of_before_the_manifest_column_are_still_read(ledger_url: str, tmp_path: Path, config: Config) -> None:
    database, store = Database(ledger_url), Store.open(f"file://{tmp_path / 'store'}")
    up_to(database, config, "0001")
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"x")
    file = File(path="picture.png", size=1, sha256="2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881")
    manifest = Manifest(kind=Kind.DATASET, files=(file,))
    store.put_blob(picture, file)
    store.put_manifest(manifest)
    columns = "digest, kind, key, job, signature, create_time"
    with database.engine.begin() as connection:
        values = {"digest": manifest.digest, "signature": b"", "time": now()}
        statement = text(f"INSERT INTO artifacts ({columns}) VALUES (:digest, 'DATASET', '', '', :signature, :time)")
        connection.execute(statement.bindparams(**values))
    migrate(database)
    assert Catalog(store=store, database=database).get(manifest.digest).manifest == manifest
    database.close()


def test_tables_that_were_made_before_there_were_revisions_keep_their_rows(ledger_url: str, config: Config) -> None:
    database = Database(ledger_url)
    up_to(database, config, "0001")
    with database.engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
        connection.execute(text("INSERT INTO artifact_uses VALUES ('jobs/a', 'd')"))
    migrate(database)
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM artifact_uses")).scalar() == 1
    database.close()


def test_a_newer_ledger_is_left_alone_and_served(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE artifacts ADD COLUMN of_tomorrow INTEGER"))
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert migrate(database) == "9999"
    with database.transaction() as session:
        session.add(ArtifactRow(digest="d" * 64, kind="MODEL", key="", job="", signature=b"", create_time=now()))
    assert "of_tomorrow" in {column["name"] for column in inspect(database.engine).get_columns("artifacts")}


def test_every_revision_only_expands(ledger_url: str, config: Config) -> None:
    # What a release before wrote must stay possible: no table, column or default goes, and a new column needs no value.
    database = Database(ledger_url)
    before: dict[str, set[str]] = {}
    for script in reversed(list(ScriptDirectory.from_config(config).walk_revisions())):
        up_to(database, config, script.revision)
        inspector = inspect(database.engine)
        after = {table: {c["name"] for c in inspector.get_columns(table)} for table in inspector.get_table_names()}
        for table, columns in before.items():
            assert columns <= after[table]
            new = [c for c in inspector.get_columns(table) if c["name"] in after[table] - columns]
            assert all(c["nullable"] or c["default"] is not None for c in new)
        before = after
    database.close()
