"""What all tests share: folders with fakes beside the tests are importable; ledgers and stores of every kind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent / "unit" / "jobs"))
sys.path.append(str(Path(__file__).parent / "pipeline"))

import servers

from atelier.ledger import Database
from atelier.migrations import migrate


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a Postgres for this session."""
    with servers.postgres() as url:
        yield url


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Endpoint of an S3 for this session; its credentials are in the environment, where stores look for them."""
    with servers.s3() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in servers.S3_ENVIRONMENT.items():
            patch.setenv(name, value)
        yield endpoint


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a new, empty database, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return servers.new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def database(ledger_url: str) -> Iterator[Database]:
    """A new ledger, of either kind."""
    database = Database(ledger_url)
    migrate(database)
    yield database
    database.close()


@pytest.fixture(params=["memory", "directory", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a new store, of any kind."""
    if request.param == "s3":
        return servers.new_bucket(request.getfixturevalue("s3"))
    return "memory://" if request.param == "memory" else f"file://{tmp_path / 'store'}"
