"""A tiny model, and a job's context over a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from atelier.graphs.random_model import write_random_model
from atelier.jobs.context import FolderContext


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiler") / "tiny"
    write_random_model(folder)
    return folder


@pytest.fixture
def context(tmp_path: Path) -> FolderContext:
    return FolderContext(tmp_path / "job")
